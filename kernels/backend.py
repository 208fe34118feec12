"""The protocol of a kernel backend, and how it says which kernel a call uses.

Backends are the modules ``kernels/triton``, ``kernels/cpu`` and ``kernels/reference/backend.py``, which have the
functions of :class:`KernelBackend`. ``kernels/dispatch.py`` chooses one for each call.
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

#: A cache side and the tokens ``[B, H, N, D]`` to append to it.
Append = tuple[Cache, torch.Tensor]


class Kernel(enum.Enum):
    """A kernel of decode attention."""

    TRITON_FIELDS = enum.auto()  # computes directly from packed words
    TRITON_PORTABLE = enum.auto()  # dequantizes tiles of tokens
    CPP = enum.auto()
    REFERENCE = enum.auto()  # plain torch


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """The kernel that a call uses.

    Attributes:
        kernel: the kernel.
        reason: why it is not a faster one, as a message; empty if there is none.
    """

    kernel: Kernel
    reason: str = ""


class KernelBackend(Protocol):
    """A kernel backend.

    Each operation has a function ``supports_*``, which returns whether the operation supports arguments with these
    devices, dtypes, shapes and formats. Operations are only called with supported arguments. Their results are those of
    ``kernels/reference``, which also documents them: state and windows bit for bit; codes and scales may differ where
    rounding is a tie.
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
        """Make a cache side from a prompt ``x [B, H, S, D]``. Spare capacity is uninitialized."""
        ...

    def supports_append(self, fmt: CacheFormat, x: torch.Tensor) -> bool:
        """Whether :meth:`append_` writes ``x [B, H, N, D]`` to a cache of this format."""
        ...

    def append_(self, sides: Sequence[Append], drop: int = 0) -> None:
        """Append new tokens to one or two cache sides, in place; then ``drop`` more tokens at the front are hidden."""
        ...

    def supports_rewind(self, cache: Cache) -> bool:
        """Whether :meth:`rewind_` takes a cache side."""
        ...

    def rewind_(self, sides: Sequence[Cache], position: torch.Tensor) -> None:
        """Truncate cache sides to ``position``, which is on the device, in place."""
        ...

    def supports_decode(self, call: AttentionCall[torch.Tensor]) -> bool:
        """Whether :meth:`decode_attention` takes a call. May compile what serves it."""
        ...

    def decode_attention(self, call: AttentionCall[torch.Tensor]) -> torch.Tensor:
        """Attention to a cache, ``[B, Hq, N, Dv]`` in the query's dtype."""
        ...

    def decode_attention_lse(self, call: AttentionCall[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the logarithm of the sum of the exponentials of the scores, ``[B, Hq, N]``.

        It is float32, and float64 in a call whose ``compute_dtype`` that is.
        """
        ...

    def decode_kernel(self, call: AttentionCall[torch.Tensor]) -> KernelChoice:
        """The kernel that a call uses. Depends on devices, dtypes and head_dims only; tensors may be fake."""
        ...

    def supports_row_linear(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> bool:
        """Whether :meth:`row_linear` takes one row and these layers."""
        ...

    def row_linear(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> torch.Tensor:
        """Outputs ``[..., sum N_i]`` of linear layers of one row ``x [..., K]``, with weights ``[N_i, K]``."""
        ...
