"""Whether a graph runs as a CUDA graph."""

from __future__ import annotations

import dataclasses
import enum


class CudaGraphUse(enum.Enum):
    """Whether a graph runs as a CUDA graph.

    Attributes:
        OFF: It does not: they are switched off, by ``cuda_graphs=False`` or an option of Inductor.
        USED: It does.
        NOT_USED: It does not, for the reason given.
        SKIPPED: Inductor skipped CUDA graphs; Dynamo's metrics give the reason once the compilation is over.
    """

    OFF = enum.auto()
    USED = enum.auto()
    NOT_USED = enum.auto()
    SKIPPED = enum.auto()


_USES = {
    CudaGraphUse.OFF: "switched off",
    CudaGraphUse.USED: "yes",
    CudaGraphUse.NOT_USED: "no",
    CudaGraphUse.SKIPPED: "no: Inductor skipped them",
}


@dataclasses.dataclass(frozen=True)
class CudaGraphs:
    """Whether a graph runs as a CUDA graph. ``str`` gives ``yes``, ``no: REASON`` or ``switched off``.

    Attributes:
        use: Whether it does.
        detail: The reason if it does not; a note if it does. May be empty.
    """

    use: CudaGraphUse = CudaGraphUse.NOT_USED
    detail: str = ""

    @property
    def short(self) -> str:
        """``yes``, ``no`` or ``switched off``."""
        return _USES[self.use].partition(":")[0]

    def __str__(self) -> str:
        between = "; " if self.use is CudaGraphUse.USED else ": "
        return between.join(filter(None, (_USES[self.use], self.detail)))
