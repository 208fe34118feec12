"""``asymmetric``: a scale and a zero point; codes range from the smallest element of a group to its largest.

Source: InnerQ, arXiv 2602.23200; in ``pair8`` words, ``docs/formats.md``.
"""

from __future__ import annotations

import torch

from . import affine, decoding, paired
from .mode import WITH_ZERO, Encoded, GroupFormat, QuantizationMode, SideData


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    if not fmt.scale_type.holds_zero:
        return affine.asymmetric(x, fmt)
    pair = paired.asymmetric(x, fmt)
    return pair.encoded(paired.codes_for(x, pair, fmt)[0])


MODE = QuantizationMode(
    name="asymmetric",
    scale_types=WITH_ZERO,
    encode=encode,
    decode=decoding.with_zero,
    has_zero=True,
    triton_encoder="encode",
    cpp_encoder="Asymmetric",
)
