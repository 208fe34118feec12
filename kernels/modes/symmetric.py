"""``symmetric``, as published: ``2^bits - 1`` levels, symmetric around zero; elements are divided by the scale.

Source: InnerQ, arXiv 2602.23200.
"""

from __future__ import annotations

import torch

from . import affine, decoding
from .mode import WITHOUT_ZERO, Encoded, GroupFormat, QuantizationMode, SideData


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    top = decoding.code_offset(fmt.bits) - 1
    codes, scale = affine.codes_for(x, x.abs().amax(-1) / top, None, -top, top, top, fmt, divide=True)
    return codes + decoding.code_offset(fmt.bits), scale, None


MODE = QuantizationMode(
    name="symmetric",
    scale_types=WITHOUT_ZERO,
    encode=encode,
    decode=decoding.without_zero,
    triton_encoder="encode",
    cpp_encoder="Symmetric",
)
