"""Triton kernels of the quantized cache: prefill, append, rewind, decode attention, and linear layers of one row.

A kernel backend (``kernels/backend.py``). Importing this package does not import Triton; where it is not installed,
``supports_*`` return False. The kernels run on CUDA tensors, and on CPU tensors under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..attention_call import AttentionCall
from ..backend import Append, Kernel, KernelChoice
from ..cache import Cache
from ..formats import CacheFormat
from . import support

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


def supports_key_statistics(keys: torch.Tensor) -> bool:
    """Whether :func:`key_statistics` supports ``keys [B, H, S, D]``."""
    return support.runs_on(keys) and keys.dtype in support.KERNEL_DTYPES and keys.shape[-1] <= support.MAX_HEAD_DIM


def key_statistics(
    keys: torch.Tensor,
    start: torch.Tensor,
    *,
    centre: bool,
    normalize: bool,
    norm: str = "channel",
    divisor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key mean and normalization, see ``reference.key_statistics`` and :func:`key_moments.key_statistics`."""
    from . import key_moments

    return key_moments.key_statistics(keys, start, centre, normalize, norm, divisor)


def supports_prefill(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`prefill` supports ``x [B, H, S, D]``."""
    return support.writes(fmt) and support.runs_on(x) and support.format_supported(fmt, x.shape[-1], x.dtype)


def prefill(
    x: torch.Tensor,
    start: torch.Tensor,
    mean: torch.Tensor | None,
    norm: torch.Tensor | None,
    capacity: int,
    fmt: CacheFormat,
    query_profile: torch.Tensor | None = None,
) -> Cache:
    """Make a cache side from a prompt, see ``reference.prefill`` and :func:`cache_prefill.prefill`."""
    from . import cache_prefill

    return cache_prefill.prefill(x, start, mean, norm, capacity, fmt, query_profile)


def supports_append(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`append_` supports new tokens ``x [B, H, N, D]`` for a (contiguous) cache of this format."""
    return support.writes(fmt) and support.runs_on(x) and support.format_supported(fmt, x.shape[-1], x.dtype)


def append_(sides: Sequence[Append], drop: int = 0) -> None:
    """Append tokens to one or two cache sides, in place, see ``reference.append_`` and :func:`cache_append.append_`."""
    from . import cache_append

    cache_append.append_(sides, drop)


def supports_rewind(cache: Cache) -> bool:
    """Whether :func:`rewind_` supports a cache."""
    return support.runs_on(cache.state) and support.cache_supported(cache)


def rewind_(sides: Sequence[Cache], position: torch.Tensor) -> None:
    """Truncate caches to a length on the device, see ``reference.rewind_`` and :func:`cache_rewind.rewind_`."""
    from . import cache_rewind

    cache_rewind.rewind_(sides, position)


def supports_decode(call: AttentionCall[torch.Tensor]) -> bool:
    """Whether :func:`decode_attention` supports a call."""
    if not support.runs_on(call.query) or call.query.dtype not in support.KERNEL_DTYPES:
        return False
    if call.mask is not None and call.mask.dtype not in (torch.bool, *support.KERNEL_DTYPES):
        return False
    both = support.cache_supported(call.keys) and support.cache_supported(call.values)
    return both and not support.obstacle(call)


def decode_attention(call: AttentionCall[torch.Tensor]) -> torch.Tensor:
    """Attention to a cache, see ``reference.decode_attention`` and :func:`attention.decode_attention`."""
    from . import attention

    return attention.decode_attention(call)


def decode_attention_lse(call: AttentionCall[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the logarithm of the sum of exponentials, see ``reference.decode_attention_lse``."""
    from . import attention

    return attention.decode_attention_lse(call)


def decode_kernel(call: AttentionCall[torch.Tensor]) -> KernelChoice:
    """Which kernel :func:`decode_attention` uses, and why not the fast one."""
    query, mask = call.query, call.mask
    if not support.runs_on(query):
        return KernelChoice(Kernel.REFERENCE, "Triton is not installed")
    for cache in (call.keys, call.values):
        dtype, head_dim = cache.window.dtype, cache.window.shape[3]
        if not support.format_supported(cache.format, head_dim, dtype):
            reason = f"no Triton kernel for {cache.format.role}s of {dtype}, head_dim {head_dim}"
            return KernelChoice(Kernel.REFERENCE, reason)
    if query.dtype not in support.KERNEL_DTYPES or (
        mask is not None and mask.dtype not in (torch.bool, *support.KERNEL_DTYPES)
    ):
        return KernelChoice(Kernel.REFERENCE, "no Triton kernel for the dtype of the query or the mask")
    if reason := support.obstacle(call):
        return KernelChoice(Kernel.REFERENCE, reason)
    from . import attention

    reason = attention.fields_reason(call)
    return KernelChoice(Kernel.TRITON_PORTABLE if reason else Kernel.TRITON_FIELDS, reason)


def supports_row_linear(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> bool:
    """Whether :func:`row_linear` supports one row ``x`` and these layers."""
    if not support.runs_on(x) or x.dtype not in support.KERNEL_DTYPES:
        return False
    layers = [tensor for tensor in (*weights, *biases) if tensor is not None]
    return all(tensor.dtype == x.dtype and tensor.is_contiguous() for tensor in layers)


def row_linear(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Linear layers of one row, see ``ops.row_linear`` and :func:`linear.row_linear`."""
    from . import linear

    return linear.row_linear(x, weights, biases)
