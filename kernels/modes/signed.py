"""``signed``: all ``2^bits`` levels; the sign of the scale says on which side of zero the additional level lies."""

from __future__ import annotations

import torch

from . import affine, decoding
from .mode import WITHOUT_ZERO, Encoded, GroupFormat, QuantizationMode, SideData


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    half = decoding.code_offset(fmt.bits)
    codes, scale = affine.signed(x, fmt, reach=half)
    return codes + half, scale, None


MODE = QuantizationMode(
    name="signed",
    scale_types=WITHOUT_ZERO,
    encode=encode,
    decode=decoding.without_zero,
    triton_encoder="encode",
    cpp_encoder="Signed",
)
