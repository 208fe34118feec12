"""What the compiler did with each graph, for logs and for the user to ask."""

from __future__ import annotations

import collections
import dataclasses
import logging

from .passes.context import Reason

log = logging.getLogger(__name__)

#: Reports of the graphs compiled last, oldest first.
_REPORTS: collections.deque[GraphReport] = collections.deque(maxlen=1000)


@dataclasses.dataclass(frozen=True)
class GraphReport:
    """What became of one graph.

    Attributes:
        kind: ``prefill`` (caches leave it quantized), ``decode`` (quantized caches enter it) or ``plain``.
        attentions: places that look like attention.
        rewritten: how many of them were rewritten.
        reasons: why the others were not, or why there is none.
    """

    kind: str
    attentions: int
    rewritten: int
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        head = f"{self.kind} graph: {self.rewritten}/{self.attentions} attentions rewritten"
        return "\n  ".join([head, *map(str, self.reasons)])


def record(report: GraphReport) -> None:
    _REPORTS.append(report)
    if report.rewritten or report.kind == "decode":
        log.info("%s", report)
    else:
        log.warning("%s", report)


def compiled_graphs() -> list[GraphReport]:
    """Reports of the graphs that this process compiled, oldest first (the last 1000)."""
    return list(_REPORTS)


def clear_reports() -> None:
    _REPORTS.clear()
