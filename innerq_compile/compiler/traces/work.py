"""What the backend has found out about a graph, at the graph that is restored."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

_KEY = "innerq_work"


def attach(gm: GraphModule, work: Any) -> None:
    """Let a restored graph have what was kept with it."""
    gm.meta[_KEY] = work


def take_work(gm: GraphModule) -> Any:
    """What was given to ``traces.captured`` for a graph that is restored, with new graphs; None for any other graph.

    It is taken away from the graph: it can be used once, and copies of the graph are without it.
    """
    return gm.meta.pop(_KEY, None)
