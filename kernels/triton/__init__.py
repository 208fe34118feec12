"""Triton kernels of the quantized cache: prefill, append, decode attention.

Importing this package does not import Triton; ``supports_*`` answer False where it is not installed. The kernels run
on CUDA tensors, and on CPU tensors under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import torch

from ..formats import CacheFormat
from . import support

__all__ = [
    "append_",
    "decode_attention",
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

Cache = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def supports_prefill(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`prefill` takes ``x [B, H, S, D]``."""
    return support.writes(fmt) and support.runs_on(x) and support.format_supported(fmt, x.shape[-1], x.dtype)


def supports_key_statistics(keys: torch.Tensor) -> bool:
    """Whether :func:`key_statistics` takes ``keys [B, H, S, D]``."""
    return support.runs_on(keys) and keys.dtype in support.DTYPES and keys.shape[-1] <= support.MAX_HEAD_DIM


def supports_append(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`append_` takes new tokens ``x [B, H, N, D]`` for a (dense) cache of this format."""
    return support.writes(fmt) and support.runs_on(x) and support.format_supported(fmt, x.shape[-1], x.dtype)


def supports_rewind(cache: Cache, fmt: CacheFormat) -> bool:
    """Whether :func:`rewind_` takes a cache of this format."""
    return support.runs_on(cache[3]) and support.cache_supported(cache, fmt)


def supports_decode(
    query: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    mask: torch.Tensor | None,
    scale: float,
    causal: bool,
    softcap: float,
    sink_logits: torch.Tensor | None,
    k_fmt: CacheFormat,
    v_fmt: CacheFormat,
) -> bool:
    """Whether :func:`decode_attention` takes these arguments."""
    if not support.runs_on(query) or query.dtype not in support.DTYPES:
        return False
    if mask is not None and mask.dtype not in (torch.bool, *support.DTYPES):
        return False
    return support.cache_supported(k_cache, k_fmt) and support.cache_supported(v_cache, v_fmt)


def supports_row_linear(x: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor | None]) -> bool:
    """Whether :func:`row_linear` takes one row ``x`` and these layers."""
    if not support.runs_on(x) or x.dtype not in support.DTYPES:
        return False
    layers = [tensor for tensor in (*weights, *biases) if tensor is not None]
    return all(tensor.dtype == x.dtype and tensor.is_contiguous() for tensor in layers)


def decode_kernel(query, k_window, v_window, mask, k_fmt: CacheFormat, v_fmt: CacheFormat) -> str:
    """Which kernel :func:`decode_attention` takes, and why not the fast one, see ``ops.decode_kernel``."""
    if not support.runs_on(query):
        return "reference: Triton is not installed"
    for fmt, window in ((k_fmt, k_window), (v_fmt, v_window)):
        if not support.format_supported(fmt, window.shape[3], window.dtype):
            return f"reference: no Triton kernel for {fmt.role}s of {window.dtype}, head_dim {window.shape[3]}"
    if query.dtype not in support.DTYPES or (mask is not None and mask.dtype not in (torch.bool, *support.DTYPES)):
        return "reference: no Triton kernel for the dtype of the query or the mask"
    from . import attention

    reason = attention.fields_reason(query, (None, None, k_window), (None, None, v_window), k_fmt, v_fmt)
    return f"Triton, portable: {reason}" if reason else "Triton, on packed fields"


def key_statistics(keys, start, centre, normalize, norm="channel", divisor=None):
    """Key mean and normalization, see ``reference.key_statistics`` and :func:`key_moments.key_statistics`."""
    from . import key_moments

    return key_moments.key_statistics(keys, start, centre, normalize, norm, divisor)


def prefill(x, start, mean, norm, capacity, fmt, rows=None):
    """A cache side made of a prompt, see ``reference.prefill`` and :func:`cache_prefill.prefill`."""
    from . import cache_prefill

    return cache_prefill.prefill(x, start, mean, norm, capacity, fmt, rows)


def append_(sides) -> None:
    """New tokens for one or two cache sides, in place, see ``reference.append_`` and :func:`cache_append.append_`."""
    from . import cache_append

    cache_append.append_(sides)


def rewind_(sides, position) -> None:
    """A pair of caches back to a length on the device, see ``reference.truncate_`` and :func:`cache_rewind.rewind_`."""
    from . import cache_rewind

    cache_rewind.rewind_(sides, position)


def decode_attention(
    query, k_cache, v_cache, mask, scale, causal, softcap, sink_logits, k_fmt, v_fmt, open_from=None
) -> torch.Tensor:
    """Attention to a cache, see ``reference.decode_attention`` and :func:`attention.decode_attention`."""
    from . import attention

    return attention.decode_attention(
        query, k_cache, v_cache, mask, scale, causal, softcap, sink_logits, k_fmt, v_fmt, open_from=open_from
    )


def row_linear(x, weights, biases) -> torch.Tensor:
    """Linear layers of one row, see ``ops.row_linear`` and :func:`linear.row_linear`."""
    from . import linear

    return linear.row_linear(x, weights, biases)
