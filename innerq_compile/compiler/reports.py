"""The process-wide list of reports of compiled graphs."""

from __future__ import annotations

import collections
import logging
import threading

from ..logs import trace_json
from ..runtime.report import GraphKind, GraphReport

log = logging.getLogger(__name__)

#: How many reports are kept.
MAX_REPORTS = 1000


class _Reports:
    """The latest reports, oldest first. Has a lock because threads compile concurrently."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: collections.deque[GraphReport] = collections.deque(maxlen=MAX_REPORTS)
        self._count = 0
        self._warned: set[tuple[str, ...]] = set()

    def add(self, report: GraphReport) -> bool:
        """Assign the next index to a report and keep it. Returns whether to warn that nothing was rewritten.

        The same reasons are warned of once, because other graphs of the program would repeat them. A graph without
        attention is not warned of if an attention of another graph was rewritten: graph breaks split the program.
        """
        with self._lock:
            report.index = self._count
            self._count += 1
            self._kept.append(report)
            reasons = tuple(map(str, report.reasons))
            if report.rewritten or report.kind is GraphKind.DECODE or not self._is_new(reasons):
                return False
            return bool(report.attentions) or not any(other.rewritten for other in self._kept)

    def is_new(self, reasons: tuple[str, ...]) -> bool:
        """Whether these reasons have not been warned of. From then on they have."""
        with self._lock:
            return self._is_new(reasons)

    def _is_new(self, reasons: tuple[str, ...]) -> bool:
        new = reasons not in self._warned
        self._warned.add(reasons)
        return new

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
    """Assign the next index to a report, keep it and log it."""
    warn = _REPORTS.add(report)
    trace_json("innerq_report", report.to_dict)
    log.info("%s", report.headline)
    if report.made_dense:
        _warn_of_dense_caches(report)
    if warn:
        text = "; ".join(dict.fromkeys(map(str, report.reasons)))
        log.warning("nothing was rewritten in graph %d (%s): %s", report.index, report.config, text)
    for reason in report.reasons:
        log.debug("graph %d: %s", report.index, reason)


def _warn_of_dense_caches(report: GraphReport) -> None:
    """Warn, once for each reason, that caches are dense from now on."""
    count, reasons = len(report.made_dense), tuple(dict.fromkeys(map(str, report.made_dense)))
    if _REPORTS.is_new(reasons):
        why = "; ".join(reasons)
        log.warning("graph %d returns caches dense that were quantized (%d of them): %s", report.index, count, why)


def compiled_graphs() -> list[GraphReport]:
    """Reports of the graphs that this process has compiled.

    Returns:
        The latest 1000 reports, oldest first.
    """
    return _REPORTS.all()


def clear_reports() -> None:
    """Delete all reports. The next graph has index 0, and warnings that were given once are given again."""
    _REPORTS.clear()
