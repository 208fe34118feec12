"""Run a model for a prompt and two tokens, and say what was rewritten, what was not, and why."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch

from .arguments import add_backend_arguments, add_model_arguments, backend_options, device_of, dtype_of, positive
from .models import load_model
from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompt, and where the pages go."""
    add_model_arguments(parser)
    add_backend_arguments(parser)
    parser.add_argument("--prompt-tokens", type=positive, default=160, help="random tokens of the prompt, default 160")
    parser.add_argument("--context-length", type=positive, default=32768, help="for the size of the cache")
    parser.add_argument("--html", metavar="FILE", help="write the explanation as a page")
    parser.add_argument("--dump", metavar="DIR", help="write the graphs to a folder, with a page index.html")


def run(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """What :func:`innerq_compile.explain` finds."""
    from ..api import innerq
    from ..inspect.dump import dump_graphs
    from ..inspect.explain import explain

    options = backend_options(args)
    device = device_of(args)
    model = innerq(load_model(args.model, device, dtype_of(args, device), output), **options)
    prompt = torch.randint(0, model.config.get_text_config().vocab_size, (1, args.prompt_tokens), device=device)
    dump = dump_graphs(args.dump) if args.dump else contextlib.nullcontext()
    with output.progress("compiling and running"), dump:
        explanation = explain(model, prompt, attention_mask=torch.ones_like(prompt), context_length=args.context_length)
    if args.html:
        explanation.to_html(args.html)
    return {**explanation.to_dict(), "text": str(explanation)}


def show(result: dict[str, Any], output: Output) -> None:
    """The explanation as it prints."""
    output.line(result["text"])
