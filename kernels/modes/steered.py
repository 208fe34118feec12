"""``steered``: asymmetric, with the zero point whose errors the prompt's queries see least.

An error ``e`` of a group of keys costs ``(mean . e)^2 + sum of (deviation e)^2``: what it does to the square of a
product, on the average of queries whose channels are independent but for their mean. The query profile
(``reference.query_profile``) has small whole numbers for both, and errors are bytes, in parts of a scale: a zero point
that moves by parts of a scale moves them all alike, around the byte. Costs are integers, the same in any order. Groups
of two bits are tried as signed ones in the end. Only keys meet queries, so only keys can have this mode.
"""

from __future__ import annotations

import torch

from ..scale_types import MOST_STEPS, zero_step
from . import decoding, paired
from .mode import Encoded, GroupFormat, QuantizationMode, SideData
from .paired import Pair
from .rounding import CLEARLY, unit

#: Most bits of a code: the zero points of wider ones lie a whole scale apart, and there is nothing to choose.
MOST_BITS = 5
#: Zero points that are tried, as many as there are within a scale where those are fewer.
MOST_TRIED = 4
#: Codes of so few bits are tried with a signed group, too.
MOST_SIGNED_BITS = 2
#: An error is held in these parts of a scale when zero points are compared, so that it wraps around in a byte.
PARTS = 256
#: Added to a ratio below 2^14, it leaves a float32 whose low byte is those parts past the nearest code, signed.
TO_PARTS = 1.5 * 2.0**15
#: The bits of that float32.
TO_PARTS_BITS = 0x47400000


def steering(bits: int) -> tuple[int, ...]:
    """Steps by which a zero point is moved: half a scale at most, and none in the first place."""
    steps = max(1, round(1 / zero_step(bits)))
    tried = min(MOST_TRIED, steps)
    return tuple((index - tried * (index > tried // 2)) * steps // tried for index in range(tried))


def product_shift(group_size: int) -> int:
    """Bits by which the product of errors with the mean query is shortened, so that its square is below 2^31."""
    return 4 + max(0, group_size // 32 - 1).bit_length()


def profile_numbers(blocks: torch.Tensor, query_profile: torch.Tensor | None, group_size: int) -> SideData:
    """Mean and squared deviation of the queries for each element of ``blocks [..., block, D]``, int32.

    ``query_profile [..., 2, D]`` is that of ``reference.query_profile``; None where nothing is known.
    """
    if query_profile is None:
        return None
    means, weights = query_profile.to(torch.int32).unbind(-2)
    means = torch.where(means > 0x7F, 0x7F - means, means)  # those below zero are one's complements
    return means.unsqueeze(-2).expand_as(blocks), weights.unsqueeze(-2).expand_as(blocks)


def encode(x: torch.Tensor, fmt: GroupFormat, side_data: SideData) -> Encoded:
    if side_data is None:  # all channels of the queries are alike
        side_data = torch.zeros_like(x, dtype=torch.int32), torch.ones_like(x, dtype=torch.int32)
    mean, weight = side_data
    pair = paired.asymmetric(x, fmt)
    infinite = x.abs().amax(-1) == torch.finfo(x.dtype).max  # saturated, and no error to speak of
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
    """Steps of the zero point of least cost, the first of those that cost the same; none that are out of reach."""
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
        # a square but for what all zero points have in common: a line for each quarter of a scale, so that sums of
        # `weight * size` and `weight * (what is past a quarter)` are all that a kernel needs
        bent = torch.where(size < PARTS // 4, size, 3 * size - PARTS // 2 + 1)
        rests.append((weight * bent).sum(-1))
        # what the ends of the group lie past the codes does not wrap around; its channel is not looked for
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
    """``x`` behind the zero point in parts of a scale, rounded once; any number where that is over 2^14 scales."""
    inverse, offset = 1 / unit(pair.scale), TO_PARTS - pair.steps * zero_step(fmt.bits)
    past = (x.double() * inverse.double()[..., None] + offset.double()[..., None]).float()
    return past.view(torch.int32) - TO_PARTS_BITS


def _codes_within(x: torch.Tensor, pair: Pair, fmt: GroupFormat) -> torch.Tensor:
    """Codes as shares of the largest one, which a GPU limits to [0, 1] for nothing; two roundings."""
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
