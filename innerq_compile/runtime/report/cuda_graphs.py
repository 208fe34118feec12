"""Whether a graph runs as a CUDA graph."""

from __future__ import annotations

import dataclasses
import enum


class CudaGraphUse(enum.Enum):
    """Whether a graph runs as a CUDA graph."""

    NOT_ASKED_FOR = enum.auto()
    USED = enum.auto()
    NOT_USED = enum.auto()
    SKIPPED = enum.auto()  # by Inductor, which says why in Dynamo's compilation metrics once the compilation is over


#: For people.
_NAMES = {
    CudaGraphUse.NOT_ASKED_FOR: "not asked for",
    CudaGraphUse.USED: "yes",
    CudaGraphUse.NOT_USED: "no",
    CudaGraphUse.SKIPPED: "no: Inductor skipped them",
}


@dataclasses.dataclass(frozen=True)
class CudaGraphs:
    """Whether a graph runs as a CUDA graph. ``str`` gives it in words, as ``yes`` or ``no: why``.

    Attributes:
        use: whether it does.
        detail: why it does not; where it does, anything else worth knowing. May be empty.
    """

    use: CudaGraphUse = CudaGraphUse.NOT_ASKED_FOR
    detail: str = ""

    def __str__(self) -> str:
        between = "; " if self.use is CudaGraphUse.USED else ": "
        return between.join(filter(None, (_NAMES[self.use], self.detail)))
