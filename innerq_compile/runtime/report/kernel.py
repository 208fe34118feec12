"""What computes an attention."""

from __future__ import annotations

import dataclasses
import enum

from ...kernels.backend import Kernel, KernelChoice


class ServedBy(enum.Enum):
    """What computes an attention.

    Attributes:
        PROGRAM: The program's own attention; it was not rewritten.
        PROGRAM_EXACT: The program's own attention, on a prompt's keys and values before they are quantized.
        PROGRAM_DEQUANTIZED: The program's own attention on dequantized caches, because rewriting is switched off, or
            another cache begins in this step that it reads in the same softmax.
        TRITON_FIELDS: The Triton kernel that computes on packed fields.
        TRITON_PORTABLE: The portable Triton kernel.
        CPP: The C++ kernel.
        REFERENCE: The reference implementation in plain torch.
    """

    PROGRAM = enum.auto()
    PROGRAM_EXACT = enum.auto()
    PROGRAM_DEQUANTIZED = enum.auto()
    TRITON_FIELDS = enum.auto()
    TRITON_PORTABLE = enum.auto()
    CPP = enum.auto()
    REFERENCE = enum.auto()


_KERNELS = {
    Kernel.TRITON_FIELDS: ServedBy.TRITON_FIELDS,
    Kernel.TRITON_PORTABLE: ServedBy.TRITON_PORTABLE,
    Kernel.CPP: ServedBy.CPP,
    Kernel.REFERENCE: ServedBy.REFERENCE,
}

#: The short text of each, and what the long text adds.
_SERVED_BY_TEXTS = {
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
    """What computes an attention. ``str`` describes it.

    Attributes:
        served_by: What computes it.
        reason: Why no faster kernel is used; empty if this is the fastest.
    """

    served_by: ServedBy = ServedBy.PROGRAM
    reason: str = ""

    @staticmethod
    def of(choice: KernelChoice) -> AttentionKernel:
        """The kernel that serves an attention to a quantized cache."""
        return AttentionKernel(_KERNELS[choice.kernel], choice.reason)

    @property
    def short(self) -> str:
        """The description without the reason."""
        return _SERVED_BY_TEXTS[self.served_by][0]

    def __str__(self) -> str:
        name = ", ".join(filter(None, _SERVED_BY_TEXTS[self.served_by]))
        return f"{name}: {self.reason}" if self.reason else name
