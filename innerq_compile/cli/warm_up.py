"""Compile the prompt and the decode steps of a model ahead of its first request, and keep them on the disk."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from ..kernels.internals import inductor
from .arguments import (
    add_backend_arguments,
    add_model_arguments,
    backend_options,
    device_of,
    dtype_of,
    named_values,
    positive,
)
from .models import load_model, random_model
from .output import CommandError, Output

#: In this environment variable the process that ``--check`` starts finds that it is the second one.
CHECKING = "_INNERQ_WARM_UP_CHECK"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model_arguments(parser)
    add_backend_arguments(parser)
    parser.add_argument("--random-weights", action="store_true", help="load the model's config only; needs no weights")
    parser.add_argument(
        "--prompt-tokens", type=positive, nargs="+", metavar="N", help="lengths of the random prompts, default 160 200"
    )
    parser.add_argument("--batch", type=positive, nargs="+", metavar="N", help="numbers of sequences, default 1")
    parser.add_argument("--new-tokens", type=positive, metavar="N", help="tokens of each answer, default 8")
    parser.add_argument(
        "--generate",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of transformers' generate, as --generate cache_implementation=static",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="the folder to fill, default: the one that PyTorch uses",
    )
    parser.add_argument(
        "--check", action="store_true", help="then run a second process, and fail unless all it needs is on the disk"
    )


def run(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """The result of :func:`innerq_compile.warm_up` as a dict; with ``--check`` also that of the second process."""
    if args.cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.abspath(args.cache_dir)
        os.environ["TRITON_CACHE_DIR"] = os.path.join(os.path.abspath(args.cache_dir), "triton")
    else:
        inductor.set_triton_folder()  # Inductor sets it late, behind the first kernels
    from ..ahead.warm_up import warm_up
    from ..api import innerq

    options, generate = backend_options(args), named_values("--generate", args.generate)
    device = device_of(args)
    make = random_model if args.random_weights else load_model
    model = innerq(make(args.model, device, dtype_of(args, device), output), **options)
    with output.progress("warming up"):
        result = warm_up(
            model,
            prompt_tokens=args.prompt_tokens,
            batch_sizes=args.batch,
            new_tokens=args.new_tokens,
            **generate,
        )
    variables = {name: os.environ[name] for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    shown = {**result.to_dict(), "variables": variables, "text": str(result)}
    if args.check and CHECKING not in os.environ:
        with output.progress("checking in a second process"):
            shown["check"] = _second_process(args)
        check = shown["check"]
        if check["compiled"] or check["not_kept"] or check["from_disk"] < check["graphs"]:
            raise CommandError(
                f"a second process needed {check['graphs']} graphs and found {check['from_disk']} on the disk: see "
                "whether caches of PyTorch are switched off, or the model differs from process to process"
            )
    return shown


def _second_process(args: argparse.Namespace) -> dict[str, Any]:
    """The seconds of the same command in a new process, and what it compiled."""
    import json

    command = [sys.executable, "-m", "innerq_compile", *args.arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, CHECKING: "1"})
    if done.returncode:
        raise CommandError(f"the second process failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout)
    names = ("seconds", "from_disk", "compiled", "traced", "not_kept")
    graphs = sum(len(request["compiled"]) for request in found["requests"])
    return {"graphs": graphs, **{name: found[name] for name in names}}


def show(result: dict[str, Any], output: Output) -> None:
    """Print the result as tables, and the variables that later processes need."""
    output.line(result["text"])
    if "check" in result:
        check = result["check"]
        output.line(f"a second process took {check['seconds']:.1f} s and found all of it on the disk")
        if check["traced"]:
            output.line(f"{check['traced']} of {check['graphs']} graphs are traced in every process")
    output.line("requests find them with:")
    for name, folder in result["variables"].items():
        output.line(f"  {name}={folder}")
