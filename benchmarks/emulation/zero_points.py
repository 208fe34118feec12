"""Ways to choose the zero point of asymmetric groups in ``pair8`` words. Decoding is the same for all of them.

The zero point lies on a grid of ``2^(6-b)`` steps a scale, so that the codes can be aligned to a group in many ways.
All span the group; they differ in which elements are nearly exact.
"""

from __future__ import annotations

import torch

from innerq_compile.kernels import reference, scale_types
from innerq_compile.kernels.formats import CacheFormat
from innerq_compile.kernels.modes.anchored import is_anchor


def spanned(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale as stored and zero point (not rounded yet) of asymmetric groups ``x [..., g]``, ``[..., 1]`` each."""
    high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    return scale_types.pair_scale((high - low) / (2**bits - 1), low, bits), low


def decoded(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """``x`` quantized with this scale and zero point, and dequantized."""
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    step = scale_types.zero_step(bits)
    most = scale_types.MOST_STEPS
    start = torch.round(zero * inverse / step).clamp(-most, most) * step * scale
    return torch.round((x - start) * inverse).clamp(0, 2**bits - 1) * scale + start


def anchored(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Groups of values ``[..., D, 32]`` with the token of least norm on a code.

    Such a token often gets much of the attention weight.
    """
    fmt = CacheFormat("value", bits, "anchored", x.shape[-1], 0, 0, "pair8")
    (chosen,) = is_anchor(x.mT, None, x.shape[-1])
    codes = reference.quantize_groups(x, fmt, (chosen.mT,))
    return reference.dequantize_groups(*codes, fmt, x.dtype)


def steered(x: torch.Tensor, bits: int, query: torch.Tensor, spread: torch.Tensor, tried: int) -> torch.Tensor:
    """Groups of keys ``[..., G, 32]`` with the zero point of least cost, of ``tried`` ones within half a scale.

    An error ``e`` costs ``(query . e)^2 + sum over c of spread_c e_c^2``. ``query`` is the mean of the prompt's queries
    and ``spread`` their variance; both broadcast to ``x``.
    """
    scale, zero = spanned(x, bits)
    best = least = None
    for index in range(tried):
        shift = index / tried - (index > tried // 2)
        trial = decoded(x, scale, zero + shift * scale, bits)
        error = trial - x
        cost = (query * error).sum(-1, keepdim=True).square() + (spread * error.square()).sum(-1, keepdim=True)
        best = trial if best is None else torch.where(cost < least, trial, best)
        least = cost if least is None else torch.minimum(cost, least)
    return best
