"""The reports of the graphs that this process has compiled."""

from __future__ import annotations

import collections
import logging
import threading

from ..logs import trace_json
from ..runtime.report import GraphKind, GraphReport

log = logging.getLogger(__name__)

#: Reports that are kept.
MAX_REPORTS = 1000


class _Reports:
    """The last reports, oldest first. Threads compile at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: collections.deque[GraphReport] = collections.deque(maxlen=MAX_REPORTS)
        self._count = 0
        self._warned: set[tuple[str, ...]] = set()

    def add(self, report: GraphReport) -> bool:
        """Number a report and keep it; whether users are to be warned that nothing was rewritten.

        They are once for the same reasons: other graphs of the program would say the same again. Nor are they for a
        graph without attention where another was rewritten: it is a piece of a whole.
        """
        with self._lock:
            report.index = self._count
            self._count += 1
            self._kept.append(report)
            reasons = tuple(map(str, report.reasons))
            if report.rewritten or report.kind is GraphKind.DECODE or reasons in self._warned:
                return False
            self._warned.add(reasons)
            return bool(report.attentions) or not any(other.rewritten for other in self._kept)

    def all(self) -> list[GraphReport]:
        with self._lock:
            return list(self._kept)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._warned.clear()
            self._count = 0


_REPORTS = _Reports()


def record(report: GraphReport) -> None:
    """Number a report, keep it, and log it."""
    warn = _REPORTS.add(report)
    trace_json("innerq_report", report.to_dict)
    log.info("%s", report.headline)
    if warn:
        text = "; ".join(dict.fromkeys(map(str, report.reasons)))
        log.warning("nothing was rewritten in graph %d (%s): %s", report.index, report.config, text)
    for reason in report.reasons:
        log.debug("graph %d: %s", report.index, reason)


def compiled_graphs() -> list[GraphReport]:
    """Reports of the graphs that this process compiled, oldest first (the last 1000)."""
    return _REPORTS.all()


def clear_reports() -> None:
    """Forget the reports; the next graph is number 0, and what was warned of once is warned of again."""
    _REPORTS.clear()
