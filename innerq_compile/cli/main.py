"""The main function of the command line: parses arguments, runs a command, reports errors.

Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from . import bench, env, explain, fidelity, generate, warm_up
from .output import CommandError, Output

COMMANDS = (generate, explain, bench, fidelity, warm_up, env)


def name_of(module: ModuleType) -> str:
    """The name of the command in a module."""
    return module.__name__.rsplit(".", 1)[-1].replace("_", "-")


def parser() -> argparse.ArgumentParser:
    """The argument parser, with a subcommand for each module in :data:`COMMANDS`."""
    top = argparse.ArgumentParser(
        prog="python -m innerq_compile",
        description="A quantized KV cache for PyTorch decoders, inserted by a torch.compile backend.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong arguments.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for module in COMMANDS:
        name, summary = name_of(module), (module.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else on stdout")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(module=module)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line; None for ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    given = sys.argv[1:] if arguments is None else [*arguments]
    args = parser().parse_args(given, argparse.Namespace(arguments=given))
    output = Output(as_json=args.json)
    try:
        output.result(args.module.run(args, output), args.module.show)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a user of the command line gets one line instead of a traceback
        if args.debug:
            traceback.print_exc()
        else:
            kind = "" if isinstance(error, (CommandError, ValueError)) else f"{type(error).__name__}: "
            print(f"error: {kind}{str(error).strip() or 'no message'}", file=sys.stderr)
            if not isinstance(error, CommandError):
                print("(--debug shows the traceback)", file=sys.stderr)
        return 2 if isinstance(error, CommandError) and error.usage else 1
    return 0
