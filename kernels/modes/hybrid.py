"""``hybrid``: each group is signed or asymmetric, whichever has the smaller squared error.

A signed group is stored as an asymmetric one with the zero point ``-2^(bits-1) * scale``, so the choice takes no bit.
"""

from __future__ import annotations

import torch

from . import affine, decoding, paired
from .mode import WITH_ZERO, Encoded, GroupFormat, QuantizationMode, SideData
from .rounding import CLEARLY


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    if not fmt.scale_type.holds_zero:
        signed, asymmetric = affine.signed_with_zero(x, fmt), affine.asymmetric(x, fmt)
        error, other = (affine.errors(x, way, fmt).square().sum(-1) for way in (signed, asymmetric))
        return affine.choose(error <= other, signed, asymmetric)
    signed, asymmetric = paired.signed(x, fmt), paired.asymmetric(x, fmt)
    codes, error = paired.codes_for(x, signed, fmt)
    other_codes, other = paired.codes_for(x, asymmetric, fmt)
    take = error <= other * CLEARLY
    return signed.choose(take, asymmetric).encoded(torch.where(take[..., None], codes, other_codes))


MODE = QuantizationMode(
    name="hybrid",
    scale_types=WITH_ZERO,
    encode=encode,
    decode=decoding.with_zero,
    has_zero=True,
    triton_encoder="encode",
    cpp_encoder="Hybrid",
)
