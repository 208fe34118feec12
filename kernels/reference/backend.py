"""The reference as a kernel backend (``kernels/backend.py``). It supports every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..attention_call import AttentionCall
from ..backend import Append, Kernel, KernelChoice
from .attention import decode_attention, decode_attention_lse
from .caches import append_ as append_side_
from .caches import prefill, rewind_
from .linear import row_linear
from .statistics import key_statistics

__all__ = [
    "append_",
    "decode_attention",
    "decode_attention_lse",
    "decode_kernel",
    "key_statistics",
    "prefill",
    "rewind_",
    "row_linear",
    "supports_append",
    "supports_decode",
    "supports_key_statistics",
    "supports_prefill",
    "supports_rewind",
    "supports_row_linear",
]


def supports_everything(*args: Any, **kwargs: Any) -> bool:
    """Whether the reference supports a call: always True."""
    return True


supports_key_statistics = supports_prefill = supports_append = supports_everything
supports_rewind = supports_decode = supports_row_linear = supports_everything


def append_(sides: Sequence[Append], drop: int = 0) -> None:
    """Append new tokens to one or two cache sides, in place, see ``reference.append_``."""
    for cache, new in sides:
        append_side_(cache, new, drop)


def decode_kernel(call: AttentionCall[Any]) -> KernelChoice:
    """The kernel for a call: always the reference."""
    return KernelChoice(Kernel.REFERENCE)
