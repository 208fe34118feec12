"""Run a model for three tokens and show which attentions were rewritten, which were not, and why."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch

from .arguments import add_backend_arguments, add_model_arguments, backend_options, device_of, dtype_of, positive
from .models import load_model
from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model_arguments(parser)
    add_backend_arguments(parser)
    parser.add_argument("--prompt-tokens", type=positive, default=160, help="length of the random prompt, default 160")
    parser.add_argument(
        "--context-length",
        type=positive,
        default=32768,
        help="tokens for which the size of the cache is computed, default 32768",
    )
    parser.add_argument("--html", metavar="FILE", help="write the explanation as an HTML page")
    parser.add_argument("--dump", metavar="DIR", help="write the graphs to a folder, with a page index.html")


def run(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """The result of :func:`innerq_compile.explain` as a dict."""
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
    """Print the explanation as a table."""
    output.line(result["text"])
