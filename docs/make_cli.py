"""Write the commands of docs/command-line.md from the parser of the command line.

python docs/make_cli.py            # write them
python docs/make_cli.py --check    # exit with 1 where they are out of date
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from regions import ROOT, filled, main, table

PAGE = ROOT / "docs/command-line.md"
#: Options of every command, which the page describes once.
COMMON = ("--help", "--json", "--debug")


def commands() -> str:
    """What several commands take, then a heading for each command, with its summary and a table of its arguments."""
    from innerq_compile.cli.main import parser

    (subparsers,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    rows = {
        name: [argument(action) for action in command._actions if not {*COMMON} & {*action.option_strings}]
        for name, command in subparsers.choices.items()
    }
    taken = [each for own in rows.values() for each in own]
    shared = list(dict.fromkeys(each for each in taken if taken.count(each) > 1))
    parts = ["### Shared arguments", arguments_table(shared)]
    for name, command in subparsers.choices.items():
        parts += [f"### {name}", command.description or ""]
        takes = ", ".join(f"`{each.name}`" for each in rows[name] if each in shared)
        own = [each for each in rows[name] if each not in shared]
        parts += [f"Takes {takes}{', and' if own else '.'}"] if takes else []
        parts += [arguments_table(own)] if own else []
    return "\n\n".join(parts)


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument: its name, how it is written, and its help."""

    name: str
    written: str
    help: str


def argument(action: argparse.Action) -> Argument:
    """An argument as the page shows it."""
    if not action.option_strings:
        name = action.dest.upper()
        return Argument(name, name if action.required else f"[{name}]", action.help or "")
    name, values = action.option_strings[-1], "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    if action.choices is not None:
        values = f" {{{','.join(map(str, action.choices))}}}"
    more = " ..." if action.nargs in ("+", "*") else ""
    return Argument(name, name + values + more, action.help or "")


def arguments_table(arguments: list[Argument]) -> str:
    """A row an argument."""
    rows = [[f"`{each.written}`", each.help] for each in arguments]
    return table(["argument", "meaning"], [[cell.replace("|", r"\|") for cell in row] for row in rows])


def wanted() -> dict[Path, str]:
    """The text that the page should have."""
    return {PAGE: filled(PAGE.read_text(encoding="utf-8"), {"commands": commands})}


if __name__ == "__main__":
    main(__doc__.partition("\n")[0], wanted)
