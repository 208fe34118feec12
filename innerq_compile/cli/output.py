"""Output of commands: results as tables or JSON, progress bars, and the error that ends a command."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..compiler.notices import LISTENERS
from ..errors import InnerQError


class CommandError(InnerQError):
    """An error that ends a command.

    Attributes:
        usage: whether the arguments are wrong; the exit code is then 2.
    """

    def __init__(self, message: str, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


def need(module: str) -> Any:
    """Import a module of a package that the extra ``cli`` installs.

    Raises:
        CommandError: if the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        package = module.partition(".")[0]
        raise CommandError(f"this needs {package}, which is not installed: pip install 'innerq-compile[cli]'") from None


class Output:
    """Writes results to stdout, as text or as JSON, and progress to stderr."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, result: dict[str, Any], show: Callable[[dict[str, Any], Output], None]) -> None:
        """Print the result of a command: as JSON, or by ``show``."""
        if self.as_json:
            json.dump(result, sys.stdout, indent=2)
            sys.stdout.write("\n")
        else:
            show(result, self)

    def line(self, text: str = "") -> None:
        """Print a line, unless results are JSON."""
        if not self.as_json:
            print(text)

    def table(self, title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Print a table. The first column is left-aligned, all others are right-aligned."""
        rich_table, console = need("rich.table"), need("rich.console").Console()
        table = rich_table.Table(title=title or None, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)

    @contextlib.contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """Show a progress bar on stderr, which also says what is being compiled.

        Args:
            description: the text beside the bar.
            total: the number of steps; None if it is not known.

        Yields:
            A function ``advance(count=1, description=None)``.
        """
        if self.as_json and importlib.util.find_spec("rich") is None:
            yield lambda count=1, description=None: None
            return
        rich_progress, console = need("rich.progress"), need("rich.console").Console(stderr=True)
        columns = (*rich_progress.Progress.get_default_columns(), rich_progress.TimeElapsedColumn())
        with rich_progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total)

            def compiling(what: str) -> None:
                bar.update(task, description=f"{description}: compiling {what}")

            def advance(count: int = 1, description: str | None = None) -> None:
                bar.update(task, advance=count, description=description)

            with LISTENERS.holding(compiling):
                yield advance
