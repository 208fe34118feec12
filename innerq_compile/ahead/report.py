"""What :func:`innerq_compile.warm_up` reports."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..inspect.formatting import text_table
from ..runtime.report import GraphReport
from .folders import CacheFolder


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that was made to compile what it needs.

    Attributes:
        name: What was run, as ``1 x 160 tokens``.
        seconds: How long it took.
        compiled: Indices of the graphs that it compiled or took from the disk, see :attr:`GraphReport.index`.
    """

    name: str
    seconds: float
    compiled: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """The result of :func:`warm_up`. ``str`` gives it as a table.

    Attributes:
        requests: The requests, in the order in which they were made.
        graphs: Reports of the graphs that ran: what was rewritten, and what was recorded as a CUDA graph.
        from_disk: How many compiled pieces were taken from the caches on disk.
        compiled: How many were not there and are now.
        traced: How many graphs Dynamo traced. What it found about the others was on disk.
        not_kept: How many PyTorch did not put there, so that each process compiles them.
        folders: The folders that hold the caches.
    """

    requests: tuple[Request, ...]
    graphs: tuple[GraphReport, ...]
    from_disk: int
    compiled: int
    traced: int
    not_kept: int
    folders: tuple[CacheFolder, ...]

    @property
    def seconds(self) -> float:
        """How long all requests took."""
        return sum(request.seconds for request in self.requests)

    def to_dict(self) -> dict[str, Any]:
        """The result as a dict of JSON values."""
        return {
            "seconds": self.seconds,
            "requests": [dataclasses.asdict(request) for request in self.requests],
            "graphs": [graph.to_dict() for graph in self.graphs],
            "from_disk": self.from_disk,
            "compiled": self.compiled,
            "traced": self.traced,
            "not_kept": self.not_kept,
            "folders": [dataclasses.asdict(folder) for folder in self.folders],
        }

    def __str__(self) -> str:
        requests = [
            (request.name, f"{request.seconds:.1f}", ", ".join(map(str, request.compiled)) or "none")
            for request in self.requests
        ]
        graphs = [
            (f"{g.index}", f"{g.kind}", f"{g.rewritten}/{g.attentions}", f"{g.cuda_graphs}", f"{g.recorded}")
            for g in self.graphs
        ]
        regions = [f"graph {graph.index}: {graph.regions}" for graph in self.graphs if graph.regions]
        reasons = dict.fromkeys(f"graph {graph.index}: {reason}" for graph in self.graphs for reason in graph.reasons)
        pieces = f"{self.compiled} compiled, {self.from_disk} from the disk"
        if self.not_kept:
            pieces += f", {self.not_kept} that every process compiles"
        new = sum(len(request.compiled) for request in self.requests)
        return "\n".join(
            [
                text_table(("request", "seconds", "new graphs"), requests),
                "",
                text_table(("graph", "kind", "rewritten", "CUDA graphs", "recorded"), graphs),
                "",
                *regions,
                *reasons,
                f"graphs: {self.traced} traced, {new - self.traced} from the disk",
                f"pieces: {pieces}",
                *map(str, self.folders),
            ]
        )
