"""Tables that the benchmarks print."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

#: Where benchmarks print, with a fixed width if the output is not a terminal.
console = Console(width=None if sys.stdout.isatty() else 150, highlight=False, markup=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]] = (), *, title: str = "", caption: str = "", words: int = 1
) -> Table:
    """Make a table of strings. The first ``words`` columns are aligned left, the others right, as numbers are."""
    made = Table(title=title or None, caption=caption or None)
    for place, name in enumerate(columns):
        made.add_column(name, justify="left" if place < words else "right")
    for row in rows:
        made.add_row(*row)
    return made


def show(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", caption: str = "", words: int = 1
) -> None:
    """Print a :func:`table`."""
    console.print(table(columns, rows, title=title, caption=caption, words=words))
