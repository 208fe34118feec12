"""``steered``: asymmetric, with the zero point whose errors change the products with the prompt's queries least.

The error ``e`` of a group of keys costs ``(mean . e)^2 + sum of (deviation * e)^2``: the expected square of its product
with a query whose channels have this mean and deviation and are otherwise independent. The query profile
(``reference.query_profile``) holds both as small integers. Errors are bytes, in parts of a scale: moving the zero point
by parts of a scale changes all of them by the same number, modulo 256. Costs are integer sums, the same in any order.
Groups with codes of two bits are compared with a signed group as well. Only keys are multiplied with queries, so only
keys can have this mode.
"""

from __future__ import annotations

import torch

from ..scale_types import MOST_STEPS, zero_step
from . import decoding, paired
from .mode import Encoded, GroupFormat, QuantizationMode, SideData
from .paired import Pair
from .rounding import CLEARLY, unit

#: Most bits of a code: for wider ones zero points are whole scales apart, and all choices have the same errors.
MOST_BITS = 5
#: Zero points that are compared, at most: there may be fewer within one scale.
MOST_TRIED = 4
#: Up to so many bits of a code, a signed group is compared as well.
MOST_SIGNED_BITS = 2
#: Errors are integers in units of this fraction of a scale, so that they wrap around in a byte.
PARTS = 256
#: Added to a ratio below 2^14, it gives a float32 whose low byte is the signed distance from the nearest code in parts.
TO_PARTS = 1.5 * 2.0**15
#: The bits of TO_PARTS as a float32.
TO_PARTS_BITS = 0x47400000


def steering(bits: int) -> tuple[int, ...]:
    """Steps by which each candidate moves the zero point: at most half a scale, and 0 for the first one."""
    steps = max(1, round(1 / zero_step(bits)))
    tried = min(MOST_TRIED, steps)
    return tuple((index - tried * (index > tried // 2)) * steps // tried for index in range(tried))


def product_shift(group_size: int) -> int:
    """Right shift of the product of errors and mean query, so that its square is below 2^31."""
    return 4 + max(0, group_size // 32 - 1).bit_length()


def profile_numbers(blocks: torch.Tensor, query_profile: torch.Tensor | None, group_size: int) -> SideData:
    """Side data: mean and squared deviation of the queries for each element of ``blocks [..., block, D]``, int32.

    ``query_profile [..., 2, D]`` is what ``reference.query_profile`` returns, or None.
    """
    if query_profile is None:
        return None
    means, weights = query_profile.to(torch.int32).unbind(-2)
    return means.unsqueeze(-2).expand_as(blocks), weights.unsqueeze(-2).expand_as(blocks)


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    if side_data is None:  # no query profile: all channels weigh the same
        side_data = torch.zeros_like(x, dtype=torch.int32), torch.ones_like(x, dtype=torch.int32)
    mean, weight = side_data
    pair = paired.asymmetric(x, fmt)
    infinite = x.abs().amax(-1) == torch.finfo(x.dtype).max  # saturated: its error is not meaningful
    chosen = Pair(pair.scale, torch.where(infinite, pair.steps, _steer(x, pair, mean, weight, fmt)))
    if fmt.bits <= MOST_SIGNED_BITS:
        signed = paired.signed(x, fmt)
        cost, other = (_cost(x, way, mean, weight, fmt) for way in (signed, chosen))
        chosen = signed.choose((cost * CLEARLY < other) & ~infinite, chosen)
    return chosen.encoded(_codes_within(x, chosen, fmt))


def _cost(x: torch.Tensor, pair: Pair, mean: torch.Tensor, weight: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    ratio, codes = paired.ratios(x, pair, fmt)
    error = ratio - codes
    cost = (mean * error).sum(-1).square() + (weight * error.square()).sum(-1)
    return cost * unit(pair.scale).square()


def _steer(x: torch.Tensor, pair: Pair, mean: torch.Tensor, weight: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """Steps of the zero point of least cost: the first of equal ones, and none beyond ``MOST_STEPS``."""
    shift, step = product_shift(fmt.group_size), zero_step(fmt.bits)
    at, total = _in_parts(x, pair, fmt), weight.sum(-1)
    ends = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    high, low = (_in_parts(end, pair, fmt).squeeze(-1) for end in ends)
    above = high - (((1 << fmt.bits) - 1) * PARTS + PARTS // 2)
    below = -(PARTS // 2) - low
    rests, costs = [], []
    for moved in steering(fmt.bits):
        less = int(moved * step * PARTS)
        error = (at - less + PARTS // 2) % PARTS - PARTS // 2
        size = torch.where(error < 0, ~error, error)
        # The square of the error, less what it has in common for all zero points, is piecewise linear in `size`, with
        # a bend at a quarter of a scale: a kernel sums `weight * size` and `weight * max(size - quarter, 0)` only.
        bent = torch.where(size < PARTS // 4, size, 3 * size - PARTS // 2 + 1)
        rests.append((weight * bent).sum(-1))
        # Errors of elements beyond the range of codes do not wrap around. They are bounded by those of the group's
        # extremes, and weighed with the mean weight instead of that of the element's channel.
        beyond = torch.maximum(above - less, below + less).clamp(0, PARTS - 1) * total * 8 // fmt.group_size
        product = (mean * error).sum(-1) >> shift
        costs.append(product.square() + ((rests[-1] - rests[0] + beyond) >> (2 * shift - 6)))
    chosen, least = pair.steps, costs[0]
    for moved, cost in zip(steering(fmt.bits)[1:], costs[1:], strict=True):
        trial = pair.steps + moved
        better = (cost < least) & (trial.abs() <= MOST_STEPS)
        chosen, least = torch.where(better, trial, chosen), torch.where(better, cost, least)
    return chosen


def _in_parts(x: torch.Tensor, pair: Pair, fmt: GroupFormat) -> torch.Tensor:
    """``(x - zero) / scale`` in parts, rounded once. Unspecified where the ratio is above 2^14."""
    inverse, offset = 1 / unit(pair.scale), TO_PARTS - pair.steps * zero_step(fmt.bits)
    past = (x.double() * inverse.double()[..., None] + offset.double()[..., None]).float()
    return past.view(torch.int32) - TO_PARTS_BITS


def _codes_within(x: torch.Tensor, pair: Pair, fmt: GroupFormat) -> torch.Tensor:
    """Codes, rounded from fractions of the largest code: clamping to [0, 1] is free in a GPU's multiply-add."""
    top = (1 << fmt.bits) - 1
    share = x.new_full((), 1 / top)
    inverse, offset = 1 / unit(pair.scale) * share, pair.steps * zero_step(fmt.bits) * share
    within = (x.double() * inverse.double()[..., None] - offset.double()[..., None]).to(x.dtype).clamp(0, 1)
    codes = torch.round(within.double() * top)
    return torch.where(codes.isnan(), torch.zeros_like(codes), codes).to(torch.int32)


def cpp_constants(fmt: GroupFormat) -> dict[str, str]:
    return {
        "int STEERING[]": f"{{{', '.join(map(str, steering(fmt.bits)))}}}",
        "int PRODUCT_SHIFT": str(product_shift(fmt.group_size)),
        "int MOST_SIGNED_BITS": str(MOST_SIGNED_BITS),
        "int PARTS": str(PARTS),
        "float TO_PARTS": f"{TO_PARTS!r}f",
    }


MODE = QuantizationMode(
    name="steered",
    roles=("key",),
    scale_types=("pair8",),
    encode=encode,
    decode=decoding.with_zero,
    has_zero=True,
    uses_queries=True,
    side_data=profile_numbers,
    fallback="hybrid",
    most_bits={"pair8": MOST_BITS},
    triton_encoder="encode",
    cpp_encoder="Steered",
    cpp_constants=cpp_constants,
)
