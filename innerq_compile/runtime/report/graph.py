"""The report of a compiled graph: written by the compiler, counted in by calls, read by ``inspect`` and users."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from ...cache.storage import CacheStorage
from ...passes.context import Reason
from ...scoped import Scoped
from .cuda_graphs import CudaGraphs
from .layer import LayerReport
from .words import StrEnum


class GraphKind(StrEnum):
    """What a graph does with quantized caches.

    Attributes:
        PREFILL: It creates them.
        DECODE: It takes them as inputs.
        PLAIN: It has none.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    PLAIN = "plain"


#: Guards the counters of all reports: several threads may run the same graph.
_COUNTING = threading.Lock()


@dataclasses.dataclass(eq=False)
class GraphReport:
    """How one graph was compiled, and how often it has run.

    Attributes:
        kind: What the graph does with quantized caches.
        attentions: How many attentions it has, recognized or not.
        rewritten: How many of them were rewritten.
        reasons: Why the others were not rewritten, or why the graph has no attention.
        index: Number of the graph in this process, from 0.
        layers: A report for each attention.
        config: The config in short, as ``"base, recent=128"``.
        rewrite: ``InnerQConfig.rewrite``; if False, the attentions counted as rewritten read dequantized caches.
        left_out: Passes that did not run: those switched off, and those that depend on one of them.
        cuda_graphs: Whether the graph runs as a CUDA graph.
        compile_id: Dynamo's id of the compilation, ``FRAME/COUNT``.
        compiled_at: Time of the compilation, in microseconds since the epoch.
        calls: How often the graph has run.
        recorded: How many CUDA graphs innerq-compile has recorded of it; those of Inductor are not counted.
        made_dense: Why quantized caches leave the graph dense, a reason for each.
        regions: How many parts it was compiled in, as ``"34 regions of 3 kinds"``, or why as a whole.
    """

    kind: GraphKind
    attentions: int
    rewritten: int
    reasons: tuple[Reason, ...]
    index: int = 0
    layers: tuple[LayerReport, ...] = ()
    config: str = ""
    rewrite: bool = True
    left_out: tuple[str, ...] = ()
    cuda_graphs: CudaGraphs = dataclasses.field(default_factory=CudaGraphs)
    compile_id: str = ""
    compiled_at: int = 0
    calls: int = 0
    recorded: int = 0
    made_dense: tuple[Reason, ...] = ()
    regions: str = ""

    @property
    def headline(self) -> str:
        """The report in one line."""
        done = "rewritten" if self.rewrite else "served dequantized"
        line = f"graph {self.index}: {self.rewritten}/{self.attentions} attentions {done}, {self.kind}, {self.config}"
        if self.left_out:
            line += f", without {', '.join(self.left_out)}"
        return line

    def __str__(self) -> str:
        return "\n  ".join([self.headline, *map(str, self.reasons)])

    def to_dict(self) -> dict[str, Any]:
        """The report as a dict of JSON values."""
        shown = {
            "kind": str(self.kind),
            "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
            "made_dense": [dataclasses.asdict(reason) for reason in self.made_dense],
            "layers": [layer.to_dict() for layer in self.layers],
            "cuda_graphs": str(self.cuda_graphs),
        }
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown

    def has_run(self, storages: list[CacheStorage]) -> None:
        """Count a call and notify the observers.

        Args:
            storages: The storages of the graph's caches; may be empty if there is no observer.
        """
        with _COUNTING:
            self.calls += 1
        if RUN_OBSERVERS.opened:
            for observer in RUN_OBSERVERS.values():
                observer(self, storages)

    def has_recorded(self) -> None:
        """Count a recorded CUDA graph."""
        with _COUNTING:
            self.recorded += 1


#: Called after each run of a compiled graph, with its report and the storages of its caches.
RUN_OBSERVERS: Scoped[Callable[[GraphReport, list[CacheStorage]], None]] = Scoped("innerq_run_observers")
