"""The report of one graph. The compiler writes it, calls of the graph are counted in it."""

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
from .words import Word


class GraphKind(Word):
    """What a graph does with quantized caches."""

    PREFILL = "prefill"  # it makes them
    DECODE = "decode"  # it takes them as inputs
    PLAIN = "plain"  # it has none


#: Guards the counters of all reports: threads that run the same graph count in the same report.
_COUNTING = threading.Lock()


@dataclasses.dataclass(eq=False)
class GraphReport:
    """What the compiler made of one graph.

    Attributes:
        kind: what the graph does with quantized caches: ``"prefill"`` makes them, ``"decode"`` takes them, ``"plain"``
            has none.
        attentions: number of places in the graph that look like attention.
        rewritten: number of attentions that were rewritten.
        reasons: why the others were not, or why there is none.
        index: the number of the graph in this process, from 0.
        layers: one report for each attention.
        config: the config in words.
        rewrite: ``InnerQConfig.rewrite``; where it is False, rewritten attentions read dequantized caches.
        left_out: names of passes that were switched off, or that needed one that was.
        cuda_graphs: whether CUDA graphs were asked for and are used, and why not.
        compile_id: Dynamo's id of the compilation, ``frame/recompilation``.
        compiled_at: time of the compilation, in microseconds since the epoch.
        calls: how often the graph has run.
        recorded: how many CUDA graphs this package has recorded of it; those of Inductor are not counted.
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
        """All attributes as strings, numbers, lists and dicts, ready for JSON."""
        shown = {
            "kind": str(self.kind),
            "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
            "layers": [layer.to_dict() for layer in self.layers],
            "cuda_graphs": str(self.cuda_graphs),
        }
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown

    def has_run(self, storages: list[CacheStorage]) -> None:
        """Count a call of the graph, and tell :data:`RUN_OBSERVERS`.

        Args:
            storages: of the graph's caches; may be empty where there is no observer.
        """
        with _COUNTING:
            self.calls += 1
        if RUN_OBSERVERS.opened:
            for observer in RUN_OBSERVERS.values():
                observer(self, storages)

    def has_recorded(self) -> None:
        """Count a CUDA graph that was recorded of the graph."""
        with _COUNTING:
            self.recorded += 1


#: Functions that are called with a graph's report and the storages of its caches whenever a compiled graph has run.
RUN_OBSERVERS: Scoped[Callable[[GraphReport, list[CacheStorage]], None]] = Scoped("innerq_run_observers")
