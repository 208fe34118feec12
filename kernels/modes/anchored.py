"""``anchored``: asymmetric, with a zero point such that one token of each group, the *anchor*, lies exactly on a code.

The anchor is the token of least norm: often an attention sink, whose errors count most (``docs/method.md``). Groups of
all channels have the same tokens only for values, so only values can have this mode.
"""

from __future__ import annotations

import torch

from . import affine, decoding, paired
from .mode import WITH_ZERO, Encoded, GroupFormat, QuantizationMode, SideData
from .rounding import CLEARLY, fma, is_empty, unit

#: Most bits of a code with ``pair8``: the zero points of wider codes are whole scales apart, which moves no element
#: relative to the codes.
MOST_BITS = 5


def anchors(blocks: torch.Tensor, group_size: int) -> torch.Tensor:
    """The token of least norm in each group of values ``[..., block, D]``, as an index into the group.

    Returns ``[..., block / group_size]``: the first token whose norm is within the factor ``CLEARLY`` of the least. A
    norm of NaN counts as infinite.
    """
    norm = (blocks if blocks.dtype == torch.float64 else blocks.float()).square().sum(-1)
    norm = torch.where(norm.isnan(), torch.inf, norm).unflatten(-1, (-1, group_size))
    return (norm <= norm.amin(-1, keepdim=True) * CLEARLY).int().argmax(-1)


def is_anchor(blocks: torch.Tensor, query_profile: torch.Tensor | None, group_size: int) -> SideData:
    """Side data: a boolean tensor of the shape of ``blocks``, true for the elements of anchors."""
    place = torch.arange(group_size, device=blocks.device)
    chosen = (anchors(blocks, group_size)[..., None] == place).flatten(-2)
    return (chosen[..., None].expand(blocks.shape),)


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    if side_data is None:
        raise ValueError("mode anchored needs to know which elements are anchors: see anchored.is_anchor")
    anchor = x.gather(-1, side_data[0].int().argmax(-1, keepdim=True)).squeeze(-1)
    low = x.amin(-1)
    if fmt.scale_type.holds_zero:
        inverse = 1 / unit(paired.asymmetric_scale(x, fmt))
        pair = paired.asymmetric(x, fmt, _past_code(anchor, low, inverse, fmt))
        return pair.encoded(paired.codes_for(x, pair, fmt)[0])
    scale = affine.stored_scale(affine.asymmetric_scale(x, fmt), affine.asymmetric_reach(fmt), fmt)[1]
    empty = is_empty(scale) | scale.isnan()
    past = _past_code(anchor, low, 1 / torch.where(empty, torch.ones_like(scale), scale), fmt)
    zero = fma(torch.where(empty, torch.zeros_like(past), past), scale, low)
    most = fmt.scale_type.largest - scale * affine.levels(fmt)  # so that the largest code decodes to a finite number
    return affine.asymmetric(x, fmt, torch.minimum(zero, most))


def _past_code(anchor: torch.Tensor, low: torch.Tensor, inverse: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """Distance of the anchor from the nearest code, in scales, with ``low`` as the zero point."""
    off = fma(anchor, inverse, -(low * inverse)).clamp(0, affine.levels(fmt))
    return off - torch.round(off)


MODE = QuantizationMode(
    name="anchored",
    roles=("value",),
    scale_types=WITH_ZERO,
    encode=encode,
    decode=decoding.with_zero,
    has_zero=True,
    uses_anchor=True,
    side_data=is_anchor,
    fallback="hybrid",
    most_bits={"pair8": MOST_BITS},
    triton_encoder="encode",
    cpp_encoder="Anchored",
)
