"""``paper_hybrid``, the hybrid as published: each group is symmetric, or asymmetric with one bit less.

A group is symmetric if that has the smaller sum of absolute errors. It is stored as an asymmetric one with the zero
point ``-2^(bits-1) * scale``, so the choice takes no bit. Both divide by the scale, as in the authors' code.

Source: InnerQ, arXiv 2602.23200.
"""

from __future__ import annotations

import torch

from . import affine, decoding
from .mode import ORDINARY, Encoded, GroupFormat, QuantizationMode, SideData


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    half = decoding.code_offset(fmt.bits)
    top, roomy = half - 1, affine.leaves_room(fmt)
    zero = affine.stored_zero(x.amin(-1), fmt)
    wide = (x.amax(-1) - x.amin(-1)) / top
    codes, scale = affine.codes_for(x, wide, zero, 0, top, 1 if roomy else top, fmt, divide=True)
    asymmetric = codes, scale, zero
    reach = half if roomy else 2 * half  # of the zero point, and of the largest code
    codes, scale = affine.codes_for(x, x.abs().amax(-1) / top, None, -top, top, reach, fmt, divide=True)
    symmetric = codes + half, scale, (-half * scale.to(x.dtype)).to(scale.dtype)
    error, other = (affine.errors(x, way, fmt).abs().sum(-1) for way in (asymmetric, symmetric))
    # a group with NaN has a NaN scale in either form
    return affine.choose(~(error <= other), symmetric, asymmetric)


MODE = QuantizationMode(
    name="paper_hybrid",
    scale_types=ORDINARY,
    encode=encode,
    decode=decoding.with_zero,
    has_zero=True,
    triton_encoder="encode",
    cpp_encoder="PaperHybrid",
)
