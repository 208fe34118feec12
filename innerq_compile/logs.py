"""The package's entries in ``TORCH_LOGS`` and ``torch._logging.set_logs``, and its artifacts for tlparse.

``TORCH_LOGS="+innerq_compile"`` works without registration, because torch imports a package that is named there. The
artifact ``innerq_graphs`` is registered when this package is imported; the package therefore has to precede it in the
variable: ``TORCH_LOGS="innerq_compile,innerq_graphs"``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .kernels.internals.logs import register_artifact, register_log, trace_structured

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: Name of the artifact that logs each captured graph, the changes of each pass, and the graph passed to Inductor.
GRAPHS = "innerq_graphs"


def register() -> None:
    """Register the log and the artifact with torch."""
    register_log("innerq_compile", "innerq_compile")
    register_artifact(
        GRAPHS, "Graphs before and after the passes of innerq_compile.", visible=True, off_by_default=True
    )


def trace_text(name: str, text: Callable[[], str]) -> None:
    """Write a text artifact of the current compilation for tlparse. ``text`` is only called if a trace is written."""
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text)


def trace_json(name: str, value: Callable[[], Any]) -> None:
    """Write a JSON artifact of the current compilation for tlparse. ``value`` is only called if a trace is written."""
    trace_structured(
        "artifact", metadata_fn=lambda: {"name": name, "encoding": "json"}, payload_fn=lambda: json.dumps(value())
    )


def trace_graph(name: str, gm: GraphModule) -> None:
    """Write the code of a graph as an artifact of the current compilation."""
    trace_text(name, lambda: graph_text(gm))


def graph_text(gm: GraphModule) -> str:
    """The code of a graph as torch's logs print it: with shapes, dtypes and the source lines of each operation."""
    gm.recompile()
    return gm.print_readable(print_output=False)
