"""Tables that the benchmarks print."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

#: Where benchmarks print. Output that is not a terminal gets a fixed width, so that files of it look alike.
console = Console(width=None if sys.stdout.isatty() else 150, highlight=False, markup=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]] = (), *, title: str = "", caption: str = "", words: int = 1
) -> Table:
    """A table of cells that are strings already; the first ``words`` columns are words, those behind them numbers."""
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
