"""Which channels a cache holds: those of the program, and zeros behind them where kernels need more.

Codes are packed in slices of 16 channels, so a cache of another head_dim is held *wider* than the program sees it. The
format of the cache says by how many channels (``CacheFormat.zeros``). Whatever meets such a cache has as many zeros
behind its own channels: the query, new keys and new values. Products with zeros are zeros, so scores and the program's
channels of the output do not change, and what lies behind those is cut off.

Operators see held channels only. Passes and ``innerq_compile/cache`` put them on and take them off, by the functions
here; as operations of a graph, they are fused with what computes a query or a key.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .formats import LANES, CacheFormat

#: head_dims at which the fastest attention kernel, ``triton/attention_fields``, takes fewest instructions a channel.
FAST_HEAD_DIMS = (64, 128, 256)


def held_head_dim(head_dim: int, quantized: bool = True) -> int:
    """The number of channels with which a cache of ``head_dim`` is held.

    Multiples of 16 are held as they are. Any other becomes the next of :data:`FAST_HEAD_DIMS` where that is at most a
    third more, else the next multiple of 16. Elements that are not ``quantized`` have the next multiple of 16: that
    kernel does not read them. What has no channels, as the rotary key of a latent layer without one, is held as zeros.
    """
    least = max(-(-head_dim // LANES), 1) * LANES
    if not quantized or head_dim == least:
        return least
    return next((width for width in FAST_HEAD_DIMS if head_dim <= width and 3 * width <= 4 * head_dim), least)


def with_zeros(x: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """``x [..., D]`` as a cache of this format holds it, with zeros behind; ``x`` itself where none are needed."""
    return F.pad(x, (0, fmt.zeros)) if fmt.zeros else x


def without_zeros(x: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """The program's channels of ``x``, contiguous; ``x`` itself if it has no others. Inverse of :func:`with_zeros`."""
    return x[..., : -fmt.zeros].contiguous() if fmt.zeros else x
