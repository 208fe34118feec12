"""What a set of kernels has to be able to do, and how it says what serves a call.

``kernels/triton``, ``kernels/cpu`` and ``kernels/reference/backend.py`` are three of them: modules with the functions
that :class:`KernelBackend` lists. Which one serves a call is decided in ``kernels/dispatch.py``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Protocol

import torch

from .attention_call import AttentionCall
from .cache import Cache
from .formats import CacheFormat

#: A cache side, and the tokens ``[B, H, N, D]`` that are to be written behind its end.
Append = tuple[Cache, torch.Tensor]


class Kernel(enum.Enum):
    """What computes the attention to a cache."""

    TRITON_FIELDS = enum.auto()  # straight from the packed words
    TRITON_PORTABLE = enum.auto()  # from tiles of dequantized tokens
    CPP = enum.auto()
    REFERENCE = enum.auto()  # plain torch


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """Which kernel serves a call.

    Attributes:
        kernel: the one that does.
        reason: why no faster one does, for people; empty where there is none.
    """

    kernel: Kernel
    reason: str = ""


class KernelBackend(Protocol):
    """One set of kernels.

    Each operation has a ``supports_*`` beside it, which looks at devices, dtypes, shapes and formats and says whether
    the operation takes these arguments; no other arguments are given to it. Whatever an operation writes or returns is
    what ``kernels/reference`` gives, see there: state and windows bit for bit, codes and scales but for ties.
    """

    def supports_key_statistics(self, keys: torch.Tensor) -> bool:
        """Whether :meth:`key_statistics` takes ``keys [B, H, S, D]``."""
        ...

    def key_statistics(
        self,
        keys: torch.Tensor,
        start: torch.Tensor,
        *,
        centre: bool,
        normalize: bool,
        norm: str = "channel",
        divisor: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and normalization of the keys of a prompt ``[B, H, S, D]``, each ``[B, H, D]`` float32."""
        ...

    def supports_prefill(self, fmt: CacheFormat, x: torch.Tensor) -> bool:
        """Whether :meth:`prefill` makes a cache of this format from ``x [B, H, S, D]``."""
        ...

    def prefill(
        self,
        x: torch.Tensor,
        start: torch.Tensor,
        mean: torch.Tensor | None,
        norm: torch.Tensor | None,
        capacity: int,
        fmt: CacheFormat,
        query_profile: torch.Tensor | None = None,
    ) -> Cache:
        """A cache side made of a prompt ``x [B, H, S, D]``; spare capacity may hold anything."""
        ...

    def supports_append(self, fmt: CacheFormat, x: torch.Tensor) -> bool:
        """Whether :meth:`append_` writes ``x [B, H, N, D]`` to a cache of this format."""
        ...

    def append_(self, sides: Sequence[Append]) -> None:
        """Write new tokens behind the end of one or two cache sides, in place."""
        ...

    def supports_rewind(self, cache: Cache) -> bool:
        """Whether :meth:`rewind_` takes a cache side."""
        ...

    def rewind_(self, sides: Sequence[Cache], position: torch.Tensor) -> None:
        """Forget all tokens of cache sides from a position on that is on the device, in place."""
        ...

    def supports_decode(self, call: AttentionCall[torch.Tensor]) -> bool:
        """Whether :meth:`decode_attention` takes a call. May compile what serves it."""
        ...

    def decode_attention(self, call: AttentionCall[torch.Tensor]) -> torch.Tensor:
        """Attention to a cache, ``[B, Hq, N, Dv]`` in the query's dtype."""
        ...

    def decode_kernel(self, call: AttentionCall[torch.Tensor]) -> KernelChoice:
        """Which kernel serves a call, from devices, dtypes and head_dims alone, so that fake tensors will do."""
        ...

    def supports_row_linear(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> bool:
        """Whether :meth:`row_linear` takes one row and these layers."""
        ...

    def row_linear(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> torch.Tensor:
        """Linear layers of one row side by side: ``x [..., K]``, weights ``[N_i, K]`` to ``[..., sum N_i]``."""
        ...
