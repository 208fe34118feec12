"""What computes an attention."""

from __future__ import annotations

import dataclasses
import enum


class ServedBy(enum.Enum):
    """What computes an attention."""

    PROGRAM = enum.auto()  # it was not rewritten
    PROGRAM_EXACT = enum.auto()  # a prefill: it reads the keys and values before they are quantized
    PROGRAM_DEQUANTIZED = enum.auto()  # rewriting is switched off: it reads dequantized keys and values
    TRITON_FIELDS = enum.auto()
    TRITON_PORTABLE = enum.auto()
    CPP = enum.auto()
    REFERENCE = enum.auto()  # plain torch


#: For people: a short name, and what is added to it where there is room.
_NAMES = {
    ServedBy.PROGRAM: ("the program's own attention", ""),
    ServedBy.PROGRAM_EXACT: ("the program's own attention", "on exact keys and values"),
    ServedBy.PROGRAM_DEQUANTIZED: ("the program's own attention", "on dequantized keys and values"),
    ServedBy.TRITON_FIELDS: ("Triton", "on packed fields"),
    ServedBy.TRITON_PORTABLE: ("Triton, portable", ""),
    ServedBy.CPP: ("C++", ""),
    ServedBy.REFERENCE: ("reference", ""),
}


@dataclasses.dataclass(frozen=True)
class AttentionKernel:
    """What computes an attention. ``str`` gives it in words.

    Attributes:
        served_by: what computes it.
        reason: why nothing faster does; may be empty.
    """

    served_by: ServedBy = ServedBy.PROGRAM
    reason: str = ""

    @property
    def short(self) -> str:
        """A short name, without the reason."""
        return _NAMES[self.served_by][0]

    def __str__(self) -> str:
        name = ", ".join(filter(None, _NAMES[self.served_by]))
        return f"{name}: {self.reason}" if self.reason else name
