"""Tells the user what is being compiled: a line on stderr for each graph whose compilation takes over two seconds.

Compilations of a model take from seconds to minutes, in which a program that says nothing looks as if it hung. The line
comes from the logger ``innerq_compile.compiling`` at level INFO. Where nobody has set up logging it goes to stderr all
the same, as Python does with warnings only. ``INNERQ_PROGRESS=0``, or a higher level of that logger, turns it off.

Programs that show progress themselves, as the command line does, take the text instead: see :data:`LISTENERS`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator

from ..kernels.internals import inductor
from ..runtime.report import GraphKind, GraphReport
from ..scoped import Scoped

#: The environment variable that turns lines off.
VARIABLE = "INNERQ_PROGRESS"

#: Seconds after which a compilation is told of.
PATIENCE = 2.0

#: Called at the start of each compilation, with what is compiled. While there is one, no lines are written.
LISTENERS: Scoped[Callable[[str], None]] = Scoped("innerq_compiling")

log = logging.getLogger("innerq_compile.compiling")
if log.level == logging.NOTSET:
    log.setLevel(logging.INFO)


class _Unheard(logging.Handler):
    """Writes to stderr what no handler of a logger above takes."""

    def emit(self, record: logging.LogRecord) -> None:
        if log.parent is None or not log.parent.hasHandlers():
            print(self.format(record), file=sys.stderr)


_HANDLER = _Unheard()
_HANDLER.setFormatter(logging.Formatter("innerq_compile: %(message)s"))
log.addHandler(_HANDLER)

_KINDS = {
    GraphKind.PREFILL: "a prompt",
    GraphKind.DECODE: "decode steps",
    GraphKind.PLAIN: "a graph without a quantized cache",
}


def description(report: GraphReport) -> str:
    """What a graph is, in the words of the line. Its regions are known once its compilation has begun."""
    count = report.attentions
    text = _KINDS[report.kind] + (f", {count} attention layer{'s' if count > 1 else ''}" if count else "")
    return text + (f" ({report.regions})" if report.regions else "")


class Notice:
    """The notice of one compilation. See :func:`compiling`.

    The line is written by the timer's thread, or, where the passes alone take longer, once the graph is known.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._report: GraphReport | None = None
        self._due = False

    def concerns(self, report: GraphReport) -> None:
        """Set the graph that is being compiled, and tell the listeners."""
        for listener in LISTENERS.values():
            listener(description(report))
        with self._lock:
            self._report = report
            if self._due:
                self._write(report)

    def fall_due(self) -> None:
        """Called when the compilation has taken long."""
        with self._lock:
            self._due = True
            if self._report is not None:
                self._write(self._report)

    @staticmethod
    def _write(report: GraphReport) -> None:
        text = "compiling %s; kept in %s for the next process (%s=0 turns this line off)"
        log.info(text, description(report), inductor.cache_directory(), VARIABLE)


@contextlib.contextmanager
def compiling() -> Iterator[Notice]:
    """Context of the compilation of a graph. If it takes over :data:`PATIENCE` seconds, a line says so, once."""
    notice = Notice()
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes that torchrun starts, one tells
    silent = not first or os.environ.get(VARIABLE) == "0" or not log.isEnabledFor(logging.INFO)
    if silent or LISTENERS.values():
        yield notice
        return
    timer = threading.Timer(PATIENCE, notice.fall_due)
    timer.daemon = True  # a program that ends in the meantime does not wait for it
    timer.start()
    try:
        yield notice
    finally:
        timer.cancel()
