"""InnerQ in plain torch: what every kernel is held to.

Nothing here is fast. Arithmetic is float32 (float64 where the inputs are float64), and every function works on any
device, under fake tensors excepted where it reads the state (eager only).
"""

from __future__ import annotations

import torch

from . import layout, short_scales
from .formats import CacheFormat, blocks_for
from .pairs import Pairs

#: Largest mean, and square of a deviation, that :func:`query_rows` gives: bytes below those of float16's infinities.
MOST_KNOWN = 123
#: Fewer real tokens than this give no key statistics: mean 0 and normalization 1 are used instead.
MIN_STATISTICS_TOKENS = 32
#: So many of a prompt's last queries say what queries are like; to read all of a long prompt's would cost more.
MOST_QUERIES = 2048
#: Least root mean square of the queries of a channel that counts, as a part of the largest of its head.
LEAST_QUERY = 2.0**-12
#: Queries count as no larger than this, so that sums of their squares are finite.
MAX_QUERY = 1e15
#: Range of the key normalization, which is relative to the largest channel of its head.
MIN_KEY_NORM = 2.0**-6
#: A key that is divided but not centred yet, as on its way through a rotary embedding, gets no larger than this or than
#: the largest key of its head: far enough from what float16 holds.
MAX_DIVIDED_KEY = 8192.0


def _as_float(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _to_finite(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in ``dtype``; what is finite stays so, as a quantized number may lie just beyond the range of its cache."""
    largest = torch.finfo(dtype).max
    return torch.where(x.isinf(), x, x.clamp(-largest, largest)).to(dtype)


def _saturate(x: torch.Tensor) -> torch.Tensor:
    """Infinities as the largest finite number, so that they spoil no other element of their group. NaN stays."""
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)


# --- groups -----------------------------------------------------------------------------------------------------


def quantize_groups(
    x: torch.Tensor,
    fmt: CacheFormat,
    anchor: torch.Tensor | None = None,
    query: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Quantize groups ``[..., group_size]``. ``anchor [...]``: the element that mode ``anchored`` puts on a code;
    ``query``: what mode ``steered`` knows of what the elements are multiplied with, the whole numbers of
    :func:`query_rows` (mean, and square of the deviation), int32 and both shaped like ``x``; None where nothing is
    known.

    Returns unsigned codes ``[..., group_size]`` int32, and scales ``[...]`` and zero points ``[...]`` as they are held,
    in the format's scale dtype. There are no zero points (None) in modes without, and where words hold both. Codes are
    chosen for the rounded scale: ``round((x - zero) * inverse)`` with the inverse of the scale rounded once a group
    (in pairs ``round(x * inverse - zero * inverse)``, a fused multiply-add; steered ones see :func:`_codes_within`),
    and ``round(x / scale)`` in mode ``symmetric``, as published. A group whose scale is zero or subnormal in float32
    decodes to zero (to its zero point, where it has one). NaN in a group makes its scale NaN.

    Source: InnerQ, arXiv 2602.23200, for ``symmetric`` and ``asymmetric``; ``docs/formats.md`` for the other modes.
    """
    x = _saturate(_as_float(x))
    if fmt.is_paired:
        return _paired(x, fmt, anchor, query)
    if fmt.mode == "symmetric":
        levels = (1 << (fmt.bits - 1)) - 1
        codes, scale = _affine_codes(x, x.abs().amax(-1) / levels, None, -levels, levels, levels, fmt)
        return codes + fmt.code_offset, scale, None
    if fmt.mode == "signed":
        codes, scale = _signed(x, fmt)
        return codes + fmt.code_offset, scale, None
    if fmt.mode == "paper_hybrid":
        return _paper_hybrid(x, fmt)
    asym_codes, asym_scale, asym_zero = _asymmetric(x, fmt, anchor)
    if fmt.mode in ("asymmetric", "anchored"):
        return asym_codes, asym_scale, asym_zero
    # hybrid: a symmetric group is an asymmetric one whose zero point is -2^(b-1) scales, so the mode costs no bit.
    half = 1 << (fmt.bits - 1)
    sym_codes, sym_scale = _signed(x, fmt)
    sym_zero = (-half * sym_scale.to(x.dtype)).to(sym_scale.dtype)
    return _better(x, (sym_codes + half, sym_scale, sym_zero), (asym_codes, asym_scale, asym_zero), fmt)


def _better(x, first, second, fmt):
    """Of two ways to code groups, ``(codes, scales, zeros or None)``, that of smaller squared error; else the first."""
    errors = [(dequantize_groups(*way, fmt, x.dtype) - x).square().sum(-1) for way in (first, second)]
    take = errors[0] <= errors[1]
    codes = torch.where(take[..., None], first[0], second[0])
    scales, zeros = (None if a is None else torch.where(take, a, b) for a, b in zip(first[1:], second[1:], strict=True))
    return codes, scales, zeros


def _held_scale(scale, reach, fmt):
    """``(as it is held, the number that it is then)``, limited so that ``reach`` of the scale is finite too."""
    if fmt.scale_dtype == "float8_e5m2":
        limit = short_scales.LARGEST[fmt.scale_dtype] / reach
        rounded = short_scales.round_scale(scale, fmt.scale_dtype, fmt.bits, limit)
        return short_scales.to_bytes(rounded), rounded.to(scale.dtype)
    limit = torch.finfo(fmt.torch_scale_dtype).max / reach
    held = scale.clamp(-limit, limit).to(fmt.torch_scale_dtype)
    return held, held.to(scale.dtype)


def _affine_codes(x, scale, zero, low, high, reach, fmt):
    """Codes for ``x ~ code * scale + zero``, for the scale as it will be stored.

    The scale is limited so that ``reach`` of it is a finite number too: what the group decodes to stays finite.
    """
    held, rounded = _held_scale(scale, reach, fmt)
    empty = rounded.abs() < torch.finfo(torch.float32).tiny
    rounded = torch.where(empty, torch.ones_like(rounded), rounded)[..., None]
    shifted = x if zero is None else x - zero.to(x.dtype)[..., None]
    # one inverse a group; the paper's own formats divide, as its authors do
    codes = shifted / rounded if fmt.mode in ("symmetric", "paper_hybrid") else shifted * rounded.reciprocal()
    codes = torch.round(codes).clamp(low, high)
    codes = torch.where(empty[..., None] | codes.isnan(), torch.zeros_like(codes), codes)
    return codes.to(torch.int32), torch.where(empty, torch.zeros_like(held), held)


def _signed(x, fmt):
    """All ``2**bits`` levels: the sign of the scale puts the extreme value of the group on the longer side."""
    half = 1 << (fmt.bits - 1)
    high, low = x.amax(-1), x.amin(-1)
    # codes run from -half to half - 1, so the extreme value is to be -half * scale
    scale = torch.where(high > -low, -high, -low) / half
    # hybrid groups hold the zero point -half * scale and codes up to 2 * half - 1; float16 has the room for these
    reach = 2 * half if fmt.mode == "hybrid" and fmt.scale_dtype != "float16" else half
    return _affine_codes(x, scale, None, -half, half - 1, reach, fmt)


def _asymmetric(x, fmt, anchor):
    levels = (1 << fmt.bits) - 1
    low, high = x.amin(-1), x.amax(-1)
    limit = torch.finfo(fmt.torch_scale_dtype).max
    # code * scale alone reaches high - low, for which float32 may be too small, unless the numbers are float16
    reach = 1 if fmt.scale_dtype == "float16" else levels
    scale = high / levels - low / levels
    zero = low
    if fmt.mode == "anchored":
        held = _held_scale(scale, reach, fmt)[1]
        empty = ~(held.abs() >= torch.finfo(torch.float32).tiny)
        past = _past_code(x, anchor, low, 1 / torch.where(empty, torch.ones_like(held), held), levels)
        zero = _fma(torch.where(empty, torch.zeros_like(past), past), held, low)
        zero = torch.minimum(zero, limit - held * levels)  # the largest code decodes to a finite number, too
    zero = zero.clamp(-limit, limit).to(fmt.torch_scale_dtype)
    codes, scale = _affine_codes(x, scale, zero, 0, levels, reach, fmt)
    return codes, scale, zero


def _fma(a, b, c):
    """``a * b + c`` with one rounding, as kernels have it."""
    return (a.double() * b.double() + c.double()).to(a.dtype)


def _past_code(x, anchor, low, inverse, levels):
    """How far the anchor of each group lies past the nearest code of a group that begins at ``low``, in scales."""
    off = _fma(x.gather(-1, anchor[..., None]).squeeze(-1), inverse, -(low * inverse)).clamp(0, levels)
    return off - torch.round(off)


def anchors(x: torch.Tensor, fmt: CacheFormat) -> torch.Tensor | None:
    """For mode ``anchored``, the token of least norm of each group of blocks of values ``[..., block, D]``; else None.

    Returns its place in the group, ``[..., groups]`` in the order of the scales. It is the first that is clearly as
    small as the least, so that the order of a sum does not matter where all norms are alike. A norm of NaN is infinite.
    """
    if fmt.mode != "anchored":
        return None
    norm = _as_float(x).square().sum(-1)
    norm = torch.where(norm.isnan(), torch.inf, norm).unflatten(-1, (-1, fmt.group_size))
    first = (norm <= norm.amin(-1, keepdim=True) * short_scales.CLEARLY).int().argmax(-1)
    return first.repeat_interleave(x.shape[-1], dim=-1)


def _paper_hybrid(x, fmt):
    """The hybrid as published: asymmetric with a bit less, or symmetric where its absolute errors sum up to less.

    A symmetric group has the zero point ``-2^(b-1) * scale``, so both are one affine map and the mode takes no bit.
    """
    half = 1 << (fmt.bits - 1)
    roomy = fmt.scale_dtype == "float16"
    limit = torch.finfo(fmt.torch_scale_dtype).max
    high, low = x.amax(-1), x.amin(-1)
    asym_zero = low.clamp(-limit, limit).to(fmt.torch_scale_dtype)
    asym = _affine_codes(x, (high - low) / (half - 1), asym_zero, 0, half - 1, 1 if roomy else half - 1, fmt)
    reach = half if roomy else 2 * half  # of the zero point, and of the largest code
    codes, scale = _affine_codes(x, x.abs().amax(-1) / (half - 1), None, 1 - half, half - 1, reach, fmt)
    sym = (codes + half, scale)
    sym_zero = (-half * scale.to(x.dtype)).to(scale.dtype)
    sym_error = (dequantize_groups(*sym, sym_zero, fmt, x.dtype) - x).abs().sum(-1)
    asym_error = (dequantize_groups(*asym, asym_zero, fmt, x.dtype) - x).abs().sum(-1)
    # a group with NaN has it in its scale, whichever is taken
    take = ~(asym_error <= sym_error)
    return (
        torch.where(take[..., None], sym[0], asym[0]),
        torch.where(take, sym[1], asym[1]),
        torch.where(take, sym_zero, asym_zero),
    )


def _paired(x, fmt, anchor, query):
    """Scale and zero point in one word: ``asymmetric``, and for ``hybrid`` also ``signed`` with a positive scale."""
    half, levels = 1 << (fmt.bits - 1), (1 << fmt.bits) - 1
    high, low = x.amax(-1), x.amin(-1)
    # halves, for which no number is too large
    scale = short_scales.pair_scale((high * 0.5 - low * 0.5) * (2 / levels), low, fmt.bits).to(x.dtype)
    step, most = short_scales.zero_step(fmt.bits), short_scales.MOST_STEPS
    inverse = 1 / _unit(scale)
    zero = low * inverse  # in scales
    if fmt.mode == "anchored":
        zero = _fma(low, inverse, _past_code(x, anchor, low, inverse, levels))
    steps = torch.round((zero * (1 / step)).clamp(-most, most))
    # the largest scale may be too small for both ends: then there are codes on both sides of zero
    beyond = (scale >= short_scales.LARGEST["pair8"]) & (high > 0)
    steps = torch.where(beyond, steps.clamp(min=-round(half / step)), steps)
    signed = _signed_pair(high, low, fmt)
    if fmt.mode == "steered":
        scale, steps = _steered(x, scale, steps, signed, query, fmt)
        return _codes_within(x, scale, steps, fmt), short_scales.to_pair(scale, steps), None
    codes, error = _pair_codes(x, scale, steps, fmt)
    if fmt.mode == "hybrid":
        signed_scale, signed_steps = signed
        signed_codes, signed_error = _pair_codes(x, signed_scale, signed_steps, fmt)
        take = signed_error <= error * short_scales.CLEARLY
        codes = torch.where(take[..., None], signed_codes, codes)
        scale, steps = torch.where(take, signed_scale, scale), torch.where(take, signed_steps, steps)
    return codes, short_scales.to_pair(scale, steps), None


def _unit(scale):
    """1 in place of a scale of 0, to which all of a group is nearer than half."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _signed_pair(high, low, fmt):
    """Scale and steps of the zero point of a signed group, whose scale is positive."""
    half, step = 1 << (fmt.bits - 1), short_scales.zero_step(fmt.bits)
    positive = high > -low
    scale = torch.where(positive, high, -low) / half
    scale = short_scales.round_scale(scale, fmt.scale_dtype, fmt.bits).to(high.dtype)
    # the level without a counterpart lies on the side of the extreme value
    steps = torch.where(positive, -round((half - 1) / step), -round(half / step)).to(high.dtype)
    return scale, torch.where(scale == 0, 0.0, steps)


def _steered(x, scale, steps, signed, query, fmt):
    """Scale, and steps of the zero point near ``steps``, whose errors cost least in the products with the queries.

    An error ``e`` of a group costs ``(mean . e)^2 + sum of (deviation e)^2``: what it does to the square of a product,
    on the average of queries whose channels are independent but for their mean. ``query`` has whole numbers for both,
    see :func:`query_rows`, and errors are bytes, in parts of a scale: a zero point that moves by parts of a scale moves
    them all alike, around the byte. Costs are integers, the same in any order. Codes of two bits are tried with a
    signed group in the end.
    """
    mean, weight = (torch.zeros_like(x, dtype=torch.int32), torch.ones_like(x, dtype=torch.int32))
    if query is not None:
        mean, weight = query
    infinite = x.abs().amax(-1) == torch.finfo(x.dtype).max  # saturated, and no error to speak of
    chosen = torch.where(infinite, steps, _steer(x, scale, steps, mean, weight, fmt))
    if fmt.bits > short_scales.MOST_SIGNED_BITS:
        return scale, chosen

    def cost_of(scale, steps):
        ratio, codes = _pair_ratios(x, scale, steps, fmt)
        error = ratio - codes
        cost = (mean * error).sum(-1).square() + (weight * error.square()).sum(-1)
        return cost * _unit(scale).square()

    less = (cost_of(*signed) * short_scales.CLEARLY < cost_of(scale, chosen)) & ~infinite
    return torch.where(less, signed[0], scale), torch.where(less, signed[1], chosen)


def _steer(x, scale, steps, mean, weight, fmt):
    """The zero point of least cost, the first of those that cost the same; those out of reach are left out."""
    parts, shift = short_scales.PARTS, short_scales.product_shift(fmt.group_size)
    step = short_scales.zero_step(fmt.bits)
    at, total = _in_parts(x, scale, steps, fmt), weight.sum(-1)
    ends = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    high, low = (_in_parts(end, scale, steps, fmt).squeeze(-1) for end in ends)
    chosen = least = base = None
    for moved in short_scales.steering(fmt.bits):
        trial, less = steps + moved, moved * step * parts
        error = (at - int(less) + parts // 2) % parts - parts // 2
        size = torch.where(error < 0, ~error, error)
        # a square but for what all zero points have in common: a line for each quarter of a scale, so that sums of
        # `weight * size` and `weight * (what is past a quarter)` are all that a kernel needs
        bent = torch.where(size < parts // 4, size, 3 * size - parts // 2 + 1)
        rest = (weight * bent).sum(-1)
        # what the ends of the group lie past the codes does not wrap around; its channel is not looked for
        above, below = high - (((1 << fmt.bits) - 1) * parts + parts // 2), -(parts // 2) - low
        beyond = torch.maximum(above - int(less), below + int(less))
        beyond = beyond.clamp(0, parts - 1) * total * 8 // fmt.group_size
        base = rest if base is None else base
        cost = ((mean * error).sum(-1) >> shift).square() + ((rest - base + beyond) >> (2 * shift - 6))
        if chosen is None:
            chosen, least = trial, cost
        better = (cost < least) & (trial.abs() <= short_scales.MOST_STEPS)
        chosen, least = torch.where(better, trial, chosen), torch.where(better, cost, least)
    return chosen


def _in_parts(x, scale, steps, fmt):
    """``x`` behind the zero point in parts of a scale, rounded once; any number where that is over 2^14 scales."""
    inverse, offset = 1 / _unit(scale), short_scales.TO_PARTS - steps * short_scales.zero_step(fmt.bits)
    past = (x.double() * inverse.double()[..., None] + offset.double()[..., None]).float()
    return past.view(torch.int32) - short_scales.TO_PARTS_BITS


def _codes_within(x, scale, steps, fmt):
    """Codes as shares of the largest one, which a GPU limits to [0, 1] for nothing; two roundings."""
    levels = (1 << fmt.bits) - 1
    share = x.new_full((), 1 / levels)
    inverse, offset = 1 / _unit(scale) * share, steps * short_scales.zero_step(fmt.bits) * share
    within = (x.double() * inverse.double()[..., None] - offset.double()[..., None]).to(x.dtype).clamp(0, 1)
    codes = torch.round(within.double() * levels)
    return torch.where(codes.isnan(), torch.zeros_like(codes), codes).to(torch.int32)


def _pair_codes(x, scale, steps, fmt):
    """``(codes, squared error)`` for a scale and a zero point as they are stored."""
    ratio, codes = _pair_ratios(x, scale, steps, fmt)
    return codes.to(torch.int32), (ratio - codes).square().sum(-1) * _unit(scale).square()


def _pair_ratios(x, scale, steps, fmt):
    """Elements in scales behind the zero point, and the codes nearest to them.

    They are ``x * (1 / scale) - zero / scale`` with one rounding behind the division.
    """
    unit = _unit(scale)
    offset = steps * short_scales.zero_step(fmt.bits)
    exact = x.double() * (1 / unit).double()[..., None] - offset.double()[..., None]
    ratio = exact.to(x.dtype)
    codes = torch.round(ratio.clamp(0, (1 << fmt.bits) - 1))
    return ratio, torch.where(codes.isnan(), torch.zeros_like(codes), codes)


def scale_numbers(scales: torch.Tensor, zeros: torch.Tensor | None, fmt: CacheFormat, dtype: torch.dtype):
    """Scales and zero points (None in modes without), ``[...]`` in ``dtype``, of what a cache holds of them."""
    if fmt.is_paired:
        return short_scales.from_pair(scales, fmt.bits, dtype)
    if fmt.scale_dtype == "float8_e5m2":
        return short_scales.from_bytes(scales, dtype), None
    return scales.to(dtype), None if zeros is None else zeros.to(dtype)


def dequantize_groups(codes, scales, zeros, fmt: CacheFormat, dtype=torch.float32) -> torch.Tensor:
    """Groups ``[..., group_size]`` of codes back to numbers, ``(code - offset) * scale`` or ``code * scale + zero``."""
    scales, zeros = scale_numbers(scales, zeros, fmt, dtype)
    if zeros is not None:
        return codes.to(dtype) * scales[..., None] + zeros[..., None]
    return (codes - fmt.code_offset).to(dtype) * scales[..., None]


# --- blocks -----------------------------------------------------------------------------------------------------


def encode_blocks(
    x: torch.Tensor, fmt: CacheFormat, query: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks ``[..., block, D]`` as ``codes [..., W]`` and ``scales [..., P]``.

    ``query [..., 1, D]``: for mode ``steered``, the row behind the windows (:func:`set_query_rows_`), or None.
    """
    *lead, block, head_dim = x.shape
    if not fmt.quantized:
        return x.reshape(*lead, block * head_dim), x.new_empty((*lead, 0), dtype=fmt.torch_scale_dtype)
    known = None
    if fmt.mode == "steered" and query is not None:
        held = query.contiguous().view(torch.uint8)[..., : 2 * head_dim]
        means, weights = held[..., :head_dim].to(torch.int32), held[..., head_dim:].to(torch.int32)
        means = torch.where(means > 0x7F, 0x7F - means, means)
        known = tuple(layout.split_groups(row.expand_as(x), fmt) for row in (means, weights))
    codes, scales, zeros = quantize_groups(layout.split_groups(x, fmt), fmt, anchors(x, fmt), known)
    words = layout.pack(layout.join_groups(codes, fmt, head_dim), fmt)
    return words, scales if zeros is None else torch.cat((scales, zeros), dim=-1)


def decode_blocks(codes: torch.Tensor, scales: torch.Tensor, fmt: CacheFormat, head_dim: int, dtype=torch.float32):
    """The numbers that blocks hold, ``[..., block, D]`` in ``dtype``."""
    if not fmt.quantized:
        return codes.reshape(*codes.shape[:-1], fmt.block, head_dim).to(dtype)
    groups = layout.groups_per_block(fmt, head_dim)
    zeros = scales[..., groups:] if fmt.scales_per_group == 2 else None
    unpacked = layout.split_groups(layout.unpack(codes, fmt, head_dim), fmt)
    return layout.join_groups(dequantize_groups(unpacked, scales[..., :groups], zeros, fmt, dtype), fmt, head_dim)


# --- statistics of a prompt -------------------------------------------------------------------------------------


def query_statistics(query: torch.Tensor, keys: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of the queries of a prompt that meet each head of keys, ``[B, H, 2, D]`` float32.

    Taken over the last :data:`MOST_QUERIES` real queries of all query heads of a key head; numbers that are not finite
    count as zero. Queries of fewer than :data:`MIN_STATISTICS_TOKENS` real tokens give 0 and 1: nothing is known.

    Args:
        query: ``[B, Hq, N, D]``, as it is multiplied with the keys; the last ``N`` tokens of the prompt.
        keys: ``[B, H, S, D]``.
        start: ``[B]``, tokens of padding in front.
    """
    heads, tokens = keys.shape[1:3]
    # an index and not a slice: of that the strides tell long from short prompts, and a graph would serve one of them
    last = torch.arange(torch.sym_max(query.shape[2] - MOST_QUERIES, 0), query.shape[2], device=query.device)
    query = query.index_select(2, last)
    batch, q_heads, rows, head_dim = query.shape
    position = torch.arange(rows, device=query.device) + (tokens - rows)
    real = position >= start[:, None]
    x = query.float()
    x = torch.where(real[:, None, :, None] & x.isfinite(), x, 0.0).clamp(-MAX_QUERY, MAX_QUERY)
    # a number that is not finite counts as zero: a count for each channel would cost as much as the sums
    group, rows = q_heads // heads, real.sum(-1)[:, None, None]
    count = (rows * group).clamp(min=1)
    total, squares = (each.sum(2).view(batch, heads, group, head_dim).sum(2) for each in (x, x.square()))
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    known = rows >= MIN_STATISTICS_TOKENS
    # no constant tensor: a graph would copy it to the device, and wait for it, at every call
    return torch.stack((torch.where(known, mean, 0.0), torch.where(known, deviation, 1.0)), 2)


def query_weight(query: torch.Tensor, norm: str) -> torch.Tensor:
    """By what the normalization of keys is divided, for what is known of the queries: the fourth root of their size.

    ``query [B, H, 2, D]`` is what :func:`query_statistics` gave; returns ``[B, H, D]`` float32. The size of a channel
    is the root mean square of its queries, over the channels that share a normalization (``CacheFormat.norm``),
    relative to the largest of the head.
    """
    square = query.square().sum(2)
    square = (square + Pairs.parse(norm).swapped(square)) * 0.5
    largest = square.amax(-1, keepdim=True)
    relative = square / largest.clamp(min=torch.finfo(torch.float32).tiny)
    weight = relative.clamp(min=LEAST_QUERY**2).sqrt().sqrt().sqrt()
    return torch.where(largest > 0, weight, 1.0)


def query_rows(query: torch.Tensor, norm: torch.Tensor | None, group_size: int) -> torch.Tensor:
    """What mode ``steered`` keeps of the queries behind the windows of a cache: two bytes a channel.

    Mean and square of the deviation of the queries as held keys meet them (times the normalization), in units of their
    own for each group, in which neither is above :data:`MOST_KNOWN`. Only ratios within a group count. A mean below
    zero is its one's complement and the sign bit, so that no two bytes read as a NaN where they lie among numbers.

    Args:
        query: ``[B, H, 2, D]`` float32 of :func:`query_statistics`.
        norm: ``[B, H, D]`` or None.
        group_size: channels that share a scale.

    Returns:
        ``[B, H, 2, D]`` uint8.
    """
    rows = torch.nan_to_num(query if norm is None else query * norm.unsqueeze(2))
    mean, deviation = rows.unflatten(-1, (-1, group_size)).unbind(2)
    least = 1e-30  # so that what is divided by it is finite
    unit = torch.minimum(
        MOST_KNOWN / mean.abs().amax(-1, keepdim=True).clamp(min=least),
        MOST_KNOWN**0.5 / deviation.abs().amax(-1, keepdim=True).clamp(min=least),
    )
    means = torch.round(mean * unit).clamp(-MOST_KNOWN, MOST_KNOWN).to(torch.int32)
    means = torch.where(means < 0, ~means + 0x80, means)
    weights = torch.round((deviation * unit).square()).clamp(max=MOST_KNOWN).to(torch.int32)
    return torch.stack((means, weights), 2).flatten(-2).to(torch.uint8)


def set_query_rows_(
    window: torch.Tensor, fmt: CacheFormat, rows: torch.Tensor | None = None, norm: torch.Tensor | None = None
) -> None:
    """Write ``rows [B, H, 2, D]`` of :func:`query_rows` behind the windows ``[B, H, R, D]``, in mode ``steered``.

    They are bytes there, whatever the dtype of the windows. Where they are not known (None), all channels of the
    queries are alike.
    """
    if fmt.mode != "steered":
        return
    if rows is None:
        rows = torch.zeros((*window.shape[:2], 2, window.shape[3]), dtype=torch.float32, device=window.device)
        rows[:, :, 1] = 1
        rows = query_rows(rows, norm, fmt.group_size)
    if rows.dtype is not torch.uint8:
        raise TypeError(f"what is known of the queries is bytes (torch.uint8), see query_rows, and not {rows.dtype}")
    held = window.view(torch.uint8)[:, :, fmt.window]
    held[..., : 2 * window.shape[3]] = rows.flatten(-2)
    held[..., 2 * window.shape[3] :] = 0


def held_query_rows(window: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """The bytes ``[B, H, 2, D]`` that :func:`set_query_rows_` has written."""
    held = window[:, :, fmt.window].contiguous().view(torch.uint8)
    return held[..., : 2 * window.shape[3]].unflatten(-1, (2, -1))


def key_statistics(
    keys: torch.Tensor,
    start: torch.Tensor,
    *,
    centre: bool,
    normalize: bool,
    norm: str = "channel",
    weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and normalization of the keys of a prompt, each ``[B, H, D]`` float32.

    Taken over the real, finite keys (positions from ``start[b]`` on). The normalization is ``sqrt(max|k - mean|)`` over
    tokens and over the channels that share it, divided by ``weight`` where something is known of the queries, and
    relative to the largest channel of the head so that neither the scaled query nor the divided key can overflow.
    Prompts of fewer than :data:`MIN_STATISTICS_TOKENS` real tokens give 0 and 1.

    Args:
        keys: ``[B, H, S, D]``.
        start: ``[B]``, tokens of padding in front.
        centre, normalize: whether to take the mean, the normalization; where not, they are 0 and 1.
        norm: ``CacheFormat.norm``. ``paper`` gives ``sqrt(max|k - mean|)`` as it is, and 1 where that is 0.
        weight: ``[B, H, D]`` of :func:`query_weight`, or None. ``paper`` takes no notice of it.

    Source: InnerQ, arXiv 2602.23200, key normalization; centring, sharing and queries: ``docs/method.md``.
    """
    tokens = keys.shape[-2]
    positions = torch.arange(tokens, device=keys.device)
    real = (positions >= start[:, None])[:, None, :, None]
    x = keys.float()
    valid = real & x.isfinite()
    count = valid.sum(-2).clamp(min=1)
    enough = (tokens - start >= MIN_STATISTICS_TOKENS)[:, None, None]
    mean = torch.where(valid, x, 0.0).div(count.unsqueeze(-2)).sum(-2)
    mean = mean if centre else torch.zeros_like(mean)
    mean = torch.where(enough, mean, 0.0)
    if not normalize:
        return mean, torch.ones_like(mean)
    largest = torch.where(valid, x - mean.unsqueeze(-2), 0.0).abs().amax(-2)
    if norm == "paper":
        return mean, torch.where(enough & (largest > 0), largest.sqrt(), 1.0)
    uncentred = torch.where(valid, x, 0.0).abs().amax(-2)
    partners = list(Pairs.parse(norm).partners(keys.shape[-1]))
    largest, shared = (torch.maximum(each, each[..., partners]) for each in (largest, uncentred))
    relative = largest / largest.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    least = shared / shared.amax(-1, keepdim=True).clamp(min=MAX_DIVIDED_KEY)
    relative = relative.sqrt()
    if weight is not None:
        relative = relative / weight
        relative = relative / relative.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    found = torch.maximum(relative, least).clamp(min=MIN_KEY_NORM)
    return mean, torch.where(enough, found, 1.0)


def normalize_keys(keys, mean, norm):
    """Keys as a cache holds them, ``(k - mean) * (1 / norm)``, in the dtype they came in."""
    if mean is None and norm is None:
        return keys
    x = _as_float(keys)
    if mean is not None:
        x = x - mean.to(x.dtype).unsqueeze(-2)
    if norm is not None:
        x = x * norm.to(x.dtype).reciprocal().unsqueeze(-2)
    return x.to(keys.dtype)


# --- caches -----------------------------------------------------------------------------------------------------


def empty_cache(fmt, batch, heads, head_dim, capacity, dtype, device):
    """``(codes, scales, window, state)`` of a cache that holds no token yet."""
    cache = tuple(
        torch.zeros(shape, dtype=own or dtype, device=device)
        for shape, own in layout.shapes(fmt, batch, heads, head_dim, capacity).values()
    )
    set_query_rows_(cache[2], fmt)
    return cache


def quantized_blocks(state: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Blocks of each sequence that are in the quantized region, ``[B, H]``."""
    return torch.div(state[..., layout.PEAK] - fmt.sink - fmt.recent, fmt.block, rounding_mode="floor").clamp(min=0)


def prefill(x, start, mean, norm, capacity: int, fmt: CacheFormat, rows=None):
    """A cache side made of ``x [B, H, S, D]``, whose sequence b begins at position ``start[b]``.

    ``rows``: for mode ``steered``, the bytes that :func:`query_rows` gave; None where it is not known. Returns
    ``(codes, scales, window, state)`` with room for ``capacity`` blocks.
    """
    batch, heads, tokens, head_dim = x.shape
    x = normalize_keys(x, mean, norm)
    # each sequence moved to begin at 0; what lies behind its end is never looked at
    index = (torch.arange(tokens, device=x.device) + start[:, None]).clamp(max=tokens - 1)
    x = x.gather(2, index[:, None, :, None].expand(batch, heads, tokens, head_dim))
    codes, scales, window, state = empty_cache(fmt, batch, heads, head_dim, capacity, x.dtype, x.device)
    length = (tokens - start).to(torch.int32)[:, None].expand(batch, heads)
    state[..., layout.START] = start[:, None]
    state[..., layout.LENGTH] = length
    state[..., layout.PEAK] = length
    set_query_rows_(window, fmt, rows, norm)
    blocks = blocks_for(fmt, tokens)
    if blocks:
        body = x[:, :, fmt.sink : fmt.sink + blocks * fmt.block]
        body = body.reshape(batch, heads, blocks, fmt.block, head_dim)
        encoded = encode_blocks(body, fmt, window[:, :, None, fmt.window :])
        codes[:, :, :blocks], scales[:, :, :blocks] = encoded
    window[:, :, : min(fmt.sink, tokens)] = x[:, :, : fmt.sink]
    if tokens > fmt.sink:
        first = fmt.sink + quantized_blocks(state, fmt) * fmt.block  # [B, H], first token of the recent window
        slots = torch.arange(fmt.ring, device=x.device)
        # the token of a slot is the one token of [first, first + ring) that falls on it
        token = first[..., None] + (slots - (first[..., None] - fmt.sink)) % fmt.ring
        held = token < length[..., None]
        gathered = x.gather(2, token.clamp(max=tokens - 1)[..., None].expand(-1, -1, -1, head_dim))
        window[:, :, fmt.sink : fmt.window] = torch.where(held[..., None], gathered, torch.zeros_like(gathered))
    return codes, scales, window, state


def real_tokens(codes, scales, window, state, tokens: int, fmt: CacheFormat, dtype=torch.float32):
    """What a cache holds at real positions ``0 .. tokens``, ``[B, H, tokens, D]``; positions it lacks are zero."""
    batch, heads, _, head_dim = window.shape
    blocks = quantized_blocks(state, fmt)
    out = torch.zeros((batch, heads, tokens, head_dim), dtype=dtype, device=window.device)
    out[:, :, : min(fmt.sink, tokens)] = window[:, :, : min(fmt.sink, tokens)].to(dtype)
    if tokens > fmt.sink:
        position = torch.arange(fmt.sink, tokens, device=window.device)
        slot = fmt.sink + (position - fmt.sink) % fmt.ring
        recent = window[:, :, slot].to(dtype)
        count = min(-(-(tokens - fmt.sink) // fmt.block), codes.shape[2])
        body = decode_blocks(codes[:, :, :count], scales[:, :, :count], fmt, head_dim, dtype)
        body = body.reshape(batch, heads, count * fmt.block, head_dim)
        body = torch.nn.functional.pad(body, (0, 0, 0, max(0, tokens - fmt.sink - count * fmt.block)))
        quantized = position < (fmt.sink + blocks * fmt.block)[..., None]
        out[:, :, fmt.sink :] = torch.where(quantized[..., None], body[:, :, : tokens - fmt.sink], recent)
    held = torch.arange(tokens, device=window.device) < state[..., layout.LENGTH, None]
    return torch.where(held[..., None], out, torch.zeros_like(out))


def dequantize(codes, scales, window, state, mean, norm, length: int, fmt: CacheFormat, dtype=None):
    """The logical tensor ``[B, H, length, D]`` of a cache; padding positions are zero."""
    dtype = dtype or window.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x = real_tokens(codes, scales, window, state, length, fmt, compute)
    if norm is not None:
        x = x * norm.to(compute).unsqueeze(-2)
    if mean is not None:
        x = x + mean.to(compute).unsqueeze(-2)
    source = torch.arange(length, device=x.device) - state[:, 0, layout.START, None]  # [B, length]
    real = (source >= 0) & (source < state[:, 0, layout.LENGTH, None])
    x = x.gather(2, source.clamp(min=0)[:, None, :, None].expand_as(x))
    return _to_finite(torch.where(real[:, None, :, None], x, torch.zeros_like(x)), dtype)


def append_(codes, scales, window, state, new: torch.Tensor, fmt: CacheFormat) -> None:
    """Write ``new [B, H, N, D]`` (keys normalized already) behind the end of a cache, in place.

    Tokens enter the recent window; whenever it holds ``recent + block`` of them its oldest block is quantized.
    """
    batch, heads, count, head_dim = new.shape
    b, h = torch.arange(batch, device=new.device)[:, None], torch.arange(heads, device=new.device)[None, :]
    for i in range(count):
        length = state[..., layout.LENGTH].long()
        slot = torch.where(length < fmt.sink, length, fmt.sink + (length - fmt.sink) % fmt.ring)
        window[b, h, slot] = new[:, :, i]
        before = quantized_blocks(state, fmt).long()
        state[..., layout.LENGTH] += 1
        state[..., layout.PEAK] = torch.maximum(state[..., layout.PEAK], state[..., layout.LENGTH])
        due = quantized_blocks(state, fmt) > before
        if bool(due.any()):
            slots = fmt.sink + (before[..., None] * fmt.block + torch.arange(fmt.block, device=new.device)) % fmt.ring
            oldest = window.gather(2, slots[..., None].expand(-1, -1, -1, head_dim))
            new_codes, new_scales = encode_blocks(oldest, fmt, window[:, :, fmt.window :])
            rows, cols = due.nonzero(as_tuple=True)
            codes[rows, cols, before[due]] = new_codes[due]
            scales[rows, cols, before[due]] = new_scales[due]


def truncate_(codes, scales, window, state, length: int, fmt: CacheFormat) -> None:
    """Forget all tokens from logical position ``length`` on, in place.

    Where that cuts a quantized block, what is left of it moves back into the recent window.
    """
    head_dim = window.shape[-1]
    old_blocks = quantized_blocks(state, fmt).long()
    # a crop into the padding in front of a sequence leaves less of it
    state[..., layout.START] = state[..., layout.START].clamp(max=length)
    kept = length - state[..., layout.START]
    kept = torch.minimum(kept, state[..., layout.LENGTH])
    state[..., layout.LENGTH] = kept
    state[..., layout.PEAK] = torch.minimum(state[..., layout.PEAK], kept + fmt.recent)
    if codes.shape[2] == 0:
        return
    blocks = quantized_blocks(state, fmt).long()
    pick = blocks.clamp(max=codes.shape[2] - 1)[..., None, None]
    cut_codes = codes.gather(2, pick.expand(-1, -1, 1, codes.shape[-1]))
    cut_scales = scales.gather(2, pick.expand(-1, -1, 1, scales.shape[-1]))
    cut = _to_finite(decode_blocks(cut_codes, cut_scales, fmt, head_dim)[:, :, 0], window.dtype)
    offset = torch.arange(fmt.block, device=window.device)
    token = fmt.sink + blocks[..., None] * fmt.block + offset
    moves = (blocks < old_blocks)[..., None] & (token < kept[..., None])
    slots = (fmt.sink + (token - fmt.sink) % fmt.ring)[..., None].expand(-1, -1, -1, head_dim)
    window.scatter_(2, slots, torch.where(moves[..., None], cut, window.gather(2, slots)))


def decode_attention(
    query, key_cache, value_cache, mask, scale, causal, softcap, sink_logits, k_fmt, v_fmt, dtype=torch.float32
):
    """Attention of ``query [B, Hq, N, D]`` to all tokens of a cache; ``[B, Hq, N, Dv]`` in ``dtype``.

    The query carries the key normalization already. ``mask`` broadcasts to ``[B, Hq, N, S]`` with S counted from the
    first padding position; ``causal`` lets query i see all but the last ``N - 1 - i`` tokens. Rows that see nothing
    give zero.
    """
    batch, q_heads, rows, head_dim = query.shape
    state = key_cache[3]
    heads = state.shape[1]
    length = state[:, 0, layout.LENGTH]
    tokens = int(length.max())
    keys = real_tokens(*key_cache, tokens, k_fmt, dtype)
    values = real_tokens(*value_cache, tokens, v_fmt, dtype)
    q = query.to(dtype).reshape(batch, heads, q_heads // heads, rows, head_dim)
    scores = torch.einsum("bhgnd,bhsd->bhgns", q, keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.reshape(batch, q_heads, rows, tokens)
    position = torch.arange(tokens, device=query.device)
    visible = (position < length[:, None])[:, None, None, :]
    if causal:
        last = length[:, None] - rows + torch.arange(rows, device=query.device)  # [B, N]
        visible = visible & (position <= last[..., None])[:, None]
    if mask is not None:
        start = state[:, 0, layout.START]
        mask = mask.expand(batch, q_heads, rows, mask.shape[-1])
        index = (position + start[:, None]).clamp(max=mask.shape[-1] - 1)[:, None, None, :]
        moved = mask.gather(-1, index.expand(batch, q_heads, rows, tokens))
        if mask.dtype == torch.bool:
            visible = visible & moved
        else:
            scores = scores + moved.to(dtype)
            visible = visible & (moved != float("-inf"))
    scores = scores.masked_fill(~visible, float("-inf"))
    if sink_logits is not None:
        extra = sink_logits.to(dtype)[None, :, None, None].expand(batch, q_heads, rows, 1)
        weights = torch.cat((scores, extra), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
        weights = torch.where(visible.any(-1, keepdim=True), weights, torch.zeros_like(weights))
    weights = weights.reshape(batch, heads, q_heads // heads, rows, tokens)
    out = torch.einsum("bhgns,bhsd->bhgnd", weights, values)
    return out.reshape(batch, q_heads, rows, values.shape[-1])
