"""Names of this package in ``TORCH_LOGS`` and ``torch._logging.set_logs``, and artifacts for tlparse.

``TORCH_LOGS="+innerq_compile"`` needs no registration: torch finds the package by its name, and imports it while torch
itself is being imported. The artifact has to be registered, which importing the package does; in the variable it
therefore stands behind the package: ``TORCH_LOGS="innerq_compile,innerq_graphs"``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .kernels.internals.logs import register_artifact, register_log, trace_structured

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: The artifact: each graph as captured, what each pass changes in it, and what Inductor gets.
GRAPHS = "innerq_graphs"


def register() -> None:
    """Make the log and the artifact known to torch."""
    register_log("innerq_compile", "innerq_compile")
    register_artifact(
        GRAPHS, "Graphs before and after the passes of innerq_compile.", visible=True, off_by_default=True
    )


def trace_text(name: str, text: Callable[[], str]) -> None:
    """An artifact of the current compilation, for tlparse. ``text`` is not called where no trace is written."""
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text)


def trace_json(name: str, value: Callable[[], Any]) -> None:
    """An artifact of the current compilation that is not text."""
    trace_structured(
        "artifact", metadata_fn=lambda: {"name": name, "encoding": "json"}, payload_fn=lambda: json.dumps(value())
    )


def trace_graph(name: str, gm: GraphModule) -> None:
    """A graph as an artifact of the current compilation."""
    trace_text(name, lambda: graph_text(gm))


def graph_text(gm: GraphModule) -> str:
    """The code of a graph as torch's own logs print it: with types, and the lines of the program it comes from."""
    gm.recompile()
    return gm.print_readable(print_output=False)
