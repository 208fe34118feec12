"""Triton kernels of the quantized cache: prefill, append, decode attention.

Importing this package does not import Triton; ``supports_*`` answer False where it is not installed. The kernels run
on CUDA tensors, and on CPU tensors under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import torch

from ..formats import CacheFormat
from . import support

__all__ = ["append_", "decode_attention", "prefill", "supports_append", "supports_decode", "supports_prefill"]

Cache = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def supports_prefill(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`prefill` takes ``x [B, H, S, D]``."""
    return support.runs_on(x) and support.format_supported(fmt, x.shape[-1], x.dtype)


def supports_append(fmt: CacheFormat, x: torch.Tensor) -> bool:
    """Whether :func:`append_` takes new tokens ``x [B, H, N, D]`` for a (dense) cache of this format."""
    return support.runs_on(x) and support.format_supported(fmt, x.shape[-1], x.dtype)


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


def prefill(x, start, mean, norm, capacity, fmt):
    """A cache side made of a prompt, see ``reference.prefill`` and :func:`cache_prefill.prefill`."""
    from . import cache_prefill

    return cache_prefill.prefill(x, start, mean, norm, capacity, fmt)


def append_(sides) -> None:
    """New tokens for one or two cache sides, in place, see ``reference.append_`` and :func:`cache_append.append_`."""
    from . import cache_append

    cache_append.append_(sides)


def decode_attention(
    query, k_cache, v_cache, mask, scale, causal, softcap, sink_logits, k_fmt, v_fmt, open_from=None
) -> torch.Tensor:
    """Attention to a cache, see ``reference.decode_attention`` and :func:`attention.decode_attention`."""
    from . import attention

    return attention.decode_attention(
        query, k_cache, v_cache, mask, scale, causal, softcap, sink_logits, k_fmt, v_fmt, open_from=open_from
    )
