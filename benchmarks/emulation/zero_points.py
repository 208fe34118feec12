"""Asymmetric groups in ``pair8`` words whose zero point is chosen: nothing that decoding reads or does changes.

The zero point of a word lies on a grid of ``2^(6-b)`` steps a scale, so that many alignments of the codes to a group
are to be had. All of them span the group; which elements come out nearly exact differs.
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
    """``x`` as groups of this scale and zero point give it back."""
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    step = scale_types.zero_step(bits)
    most = scale_types.MOST_STEPS
    start = torch.round(zero * inverse / step).clamp(-most, most) * step * scale
    return torch.round((x - start) * inverse).clamp(0, 2**bits - 1) * scale + start


def anchored(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Groups of values ``[..., D, 32]`` with the token of least norm on a code.

    That token is the one that attention likes to rest on: a tenth of the others' norm, and up to a third of the weight.
    """
    fmt = CacheFormat("value", bits, "anchored", x.shape[-1], 0, 0, "pair8")
    (chosen,) = is_anchor(x.mT, None, x.shape[-1])
    codes = reference.quantize_groups(x, fmt, (chosen.mT,))
    return reference.dequantize_groups(*codes, fmt, x.dtype)


def steered(x: torch.Tensor, bits: int, query: torch.Tensor, spread: torch.Tensor, tried: int) -> torch.Tensor:
    """Groups of keys ``[..., G, 32]`` with the zero point, of ``tried`` within half a scale, of the least cost.

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
