"""Counts the graphs that are compiled."""

from __future__ import annotations

from torch._dynamo.utils import counters

from innerq_compile import compiled_graphs
from tests.helpers.without_inductor import forget_graphs


class Graphs:
    """Counts the graphs that were compiled since it was last asked."""

    def __init__(self) -> None:
        forget_graphs()
        counters.clear()
        self._seen = 0

    def new(self) -> list[str]:
        """Kinds of the new graphs. Whatever Dynamo compiled went through this backend."""
        kinds = [str(report.kind) for report in compiled_graphs()]
        assert counters["stats"]["unique_graphs"] == len(kinds)
        kinds, self._seen = kinds[self._seen :], len(kinds)
        return kinds
