"""Quantizing and packing blocks inside a Triton kernel: ``reference.encode_blocks``.

Blocks are taken in tiles of one field and one half of the words (``kernels/layout.py``), ``[columns of all blocks, lane
pairs]``. With 32 columns a warp each thread has a column, so that a group and what goes into a word meet in one thread:
extremes and errors need no exchange, and what a group costs is paid once. Triton lays a tile out by what is contiguous
in memory, and then by its first dimension; the shapes and the hint of the columns are chosen for that. Tiles that share
groups make a set, which is loaded, quantized and packed before the next one.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .. import short_scales
from .casts import INTERPRETED, fma, in_order, round_to
from .unpack import has_zero, is_paired, tile_channels

# added to and taken from a float32 of magnitude below 2^22, it leaves the nearest integer, ties to even
ROUND = tl.constexpr(12582912.0)
F32_MAX = tl.constexpr(3.4028234663852886e38)
F32_TINY = tl.constexpr(1.1754943508222875e-38)
# so does this from 0 to 2^23, and in the low byte of the float32 then is that integer
BIAS = tl.constexpr(8388608.0)
PAIR_BIAS = tl.constexpr(0x4B000000)
# of pairs, see `kernels/short_scales.py`
PAIR_MAX = tl.constexpr(short_scales.LARGEST["pair8"])
SMALLEST_NORMAL = tl.constexpr(short_scales.SMALLEST_NORMAL)
NEAREST_BITS = tl.constexpr(short_scales.NEAREST_BITS)
CLEARLY = tl.constexpr(short_scales.CLEARLY)


@triton.jit
def _clamp(x, LIMIT: tl.constexpr):
    """``x`` within ``[-LIMIT, LIMIT]``; NaN stays NaN, which tl.clamp does not promise."""
    return tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.constexpr_function
def _largest(dtype, reach=1):
    """The largest number of a scale dtype of which ``reach`` times is finite too."""
    limits = {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp32": 3.4028234663852886e38}
    return limits[str(dtype)] / reach


@triton.constexpr_function
def block_words(bits, block, head_dim):
    """Words of a block, elements where there are no codes: ``layout.words_per_block`` in a kernel."""
    return block * head_dim * bits // 32 if bits else block * head_dim


@triton.constexpr_function
def block_params(bits, mode, group, block, head_dim, dtype):
    """Scales and zero points of a block: ``layout.scales_per_block`` in a kernel."""
    return block * head_dim // group * (2 if has_zero(mode) and not is_paired(dtype) else 1) if bits else 0


@triton.jit
def _max_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _min_nan(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _both_halves(b_low, b_high):
    """Biased codes of two neighbouring lanes as the halves of an int32, ``PAIR_BIAS`` more than they are."""
    return b_low.to(tl.int32, bitcast=True) + (b_high.to(tl.int32, bitcast=True) << 16)


@triton.jit
def _stored_scale(b_scale, REACH: tl.constexpr, DTYPE: tl.constexpr):
    """``(scale as it is stored in DTYPE, its inverse)``, float32.

    The scale is limited so that ``REACH`` of it is finite. Zero and subnormal scales become zero, and the inverse of
    those, and of NaN, is NaN, which stands for a group whose codes are all zero.
    """
    b_stored = round_to(_clamp(b_scale, _largest(DTYPE, REACH)), DTYPE).to(tl.float32)
    empty = tl.abs(b_stored) < F32_TINY
    b_inverse = tl.div_rn(tl.full(b_stored.shape, 1.0, tl.float32), tl.where(empty, float("nan"), b_stored))
    return tl.where(empty, 0.0, b_stored), b_inverse


@triton.jit
def _code(b_ratio, b_inverse, LOW: tl.constexpr, HIGH: tl.constexpr):
    """``round(ratio)`` within ``[LOW, HIGH]``, zero where the inverse of the scale is NaN, and plus ``BIAS`` and what
    makes the code unsigned, which is even, so that ties stay even."""
    OFFSET: tl.constexpr = BIAS - (LOW // 2 * 2 if LOW < 0 else 0)
    b_code = tl.minimum(tl.maximum(b_ratio, LOW), HIGH) + OFFSET
    return tl.where(tl.expand_dims(b_inverse == b_inverse, 1), b_code, OFFSET)


@triton.jit
def _difference(b_code, b_scale, b_zero, b_x):
    return (b_code - BIAS) * tl.expand_dims(b_scale, 1) + tl.expand_dims(b_zero, 1) - b_x


@triton.jit
def _quantum(b_scale):
    """Distance from a scale to the next larger one that a pair can hold."""
    b_power = (b_scale.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.maximum(b_power, SMALLEST_NORMAL) * 0.125


@triton.jit
def _pair_scale(b_scale, BITS: tl.constexpr):
    """``short_scales.round_scale`` of scales that are not negative. NaN stays."""
    b_size = tl.where(b_scale > PAIR_MAX, PAIR_MAX, b_scale)
    b_shift = _quantum(b_size) * ROUND
    b_rounded = (b_size + b_shift) - b_shift
    if BITS > NEAREST_BITS:
        b_rounded = tl.where(b_rounded < b_size, b_rounded + _quantum(b_size), b_rounded)
    return b_rounded


@triton.jit
def _pair_codes(tiles, b_scale, b_steps, BITS: tl.constexpr):
    """Codes for a scale as it is stored and a zero point of so many steps, and their squared error.

    Codes come as :func:`_both_halves` has them. The error is in squares of the scale times ``b_unit ** 2``.
    """
    STEP: tl.constexpr = 2.0 ** (BITS - 6)
    b_unit = tl.where(b_scale == 0.0, 1.0, b_scale)  # then all are nearer to zero than half of it
    b_inverse = _reciprocal(b_unit)
    b_inverse, b_offset = tl.expand_dims(b_inverse, 1), tl.expand_dims(b_steps * STEP, 1)
    b_error = tl.zeros_like(tiles[0])
    pairs = ()
    for i in tl.static_range(0, len(tiles), 2):
        b_first = fma(tiles[i], b_inverse, -b_offset)
        b_second = fma(tiles[i + 1], b_inverse, -b_offset)
        b_first_code = _unsigned_code(b_first, BITS)
        b_second_code = _unsigned_code(b_second, BITS)
        pairs = pairs + (_both_halves(b_first_code, b_second_code),)
        b_first -= b_first_code - BIAS
        b_second -= b_second_code - BIAS
        b_error += b_first * b_first
        b_error += b_second * b_second
    return pairs, tl.sum(b_error, 1) * (b_unit * b_unit)


@triton.jit
def _unsigned_code(b_ratio, BITS: tl.constexpr):
    """``round(ratio)`` within the range of a code, plus ``BIAS``. NaN gives 0."""
    if INTERPRETED:
        b_ratio = tl.where(b_ratio == b_ratio, b_ratio, 0.0)  # a GPU's maximum prefers the number
    return tl.minimum(tl.maximum(b_ratio, 0.0), (1 << BITS) - 1.0) + BIAS


@triton.jit
def _reciprocal(b_x):
    """``1 / x`` to nearest, of a scale that a pair can hold: of its 4 bits no inverse is near a tie.

    So one step of Newton is enough.
    """
    if INTERPRETED:
        return tl.div_rn(tl.full(b_x.shape, 1.0, tl.float32), b_x)
    else:
        b_near = 1.0 / b_x
        return tl.fma(b_near, tl.fma(-b_x, b_near, 1.0), b_near)


@triton.jit
def _past_code(b_anchor, b_low, b_inverse, BITS: tl.constexpr):
    """How far elements lie past the nearest code of groups that begin at ``b_low``, in scales."""
    b_off = fma(_clamp(b_anchor, F32_MAX), b_inverse, -(b_low * b_inverse))
    b_off = tl.minimum(tl.maximum(b_off, 0.0), (1 << BITS) - 1.0)
    return b_off - ((b_off + ROUND) - ROUND)


@triton.jit
def _pair_steps(b_scale, b_low, b_anchor, BITS: tl.constexpr):
    """Steps of the zero point of asymmetric groups for a scale as it is stored."""
    b_inverse = _reciprocal(tl.where(b_scale == 0.0, 1.0, b_scale))
    b_zero = b_low * b_inverse
    if b_anchor is not None:
        b_zero = fma(b_low, b_inverse, _past_code(b_anchor, b_low, b_inverse, BITS))
    b_steps = tl.minimum(tl.maximum(b_zero * 2.0 ** (6 - BITS), -127.0), 127.0)
    return (b_steps + ROUND) - ROUND


@triton.jit
def _pair_word(b_scale, b_steps):
    """``short_scales.to_pair`` as int32 below 2^16, which the caller stores as int16."""
    b_steps = tl.where(b_scale == b_scale, b_steps, 0.0).to(tl.int32)
    b_bits = b_scale.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0x7F80
    b_bits = tl.where(b_scale == b_scale, b_bits, 0x7F80)
    return b_bits | tl.abs(b_steps) | tl.where(b_steps < 0, 0x8000, 0)


@triton.jit
def _paired(tiles, b_high, b_low, b_anchor, MODE: tl.constexpr, BITS: tl.constexpr):
    """``reference._paired``: codes and the words of scales and zero points."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    LEVELS: tl.constexpr = (1 << BITS) - 1
    REACH: tl.constexpr = 127 * 2.0 ** (BITS - 6)
    # halves, so that neither overflows and a fused multiply-add changes nothing
    b_width = (b_high * 0.5 - b_low * 0.5) * (2.0 / LEVELS)
    b_scale = _pair_scale(_max_nan(b_width, tl.abs(b_low) * (1.0 / REACH)), BITS)
    b_larger = b_scale + _quantum(b_scale)
    b_larger = tl.where(b_larger > PAIR_MAX, PAIR_MAX, b_larger)
    b_scale = tl.where(tl.abs(b_low) > b_scale * REACH, b_larger, b_scale)
    b_steps = _pair_steps(b_scale, b_low, b_anchor, BITS)
    pairs, b_error = _pair_codes(tiles, b_scale, b_steps, BITS)
    if MODE == "hybrid":
        # signed, with a positive scale: the level without a counterpart lies on the side of the extreme value
        positive = b_high > -b_low
        b_signed = _pair_scale(tl.where(positive, b_high, -b_low) * (1.0 / HALF), BITS)
        b_signed_steps = tl.where(positive, _steps_of(HALF - 1, BITS), _steps_of(HALF, BITS))
        b_signed_steps = tl.where(b_signed == 0.0, 0.0, b_signed_steps)
        signed, b_signed_error = _pair_codes(tiles, b_signed, b_signed_steps, BITS)
        take = b_signed_error <= b_error * CLEARLY
        pairs = _choose(take, signed, pairs)
        b_scale = tl.where(take, b_signed, b_scale)
        b_steps = tl.where(take, b_signed_steps, b_steps)
    b_word = _pair_word(b_scale, b_steps)
    return pairs, b_word, b_word


@triton.constexpr_function
def _steps_of(scales, bits):
    """Steps of a zero point that many scales below zero."""
    return float(-round(scales * 2.0 ** (6 - bits)))


@triton.jit
def _choose(take, first, second):
    """The tiles of ``first`` for the groups that ``take`` them, else those of ``second``."""
    chosen = ()
    for i in tl.static_range(len(first)):
        chosen = chosen + (tl.where(tl.expand_dims(take, 1), first[i], second[i]),)
    return chosen


@triton.jit
def _paper_hybrid(tiles, b_high, b_low, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Asymmetric with a bit less, or symmetric where its absolute errors sum up to less; both divide."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    ROOMY: tl.constexpr = tl.float16 == DTYPE  # float16 numbers leave float32 room, see `_largest`
    b_levels = tl.full(b_high.shape, HALF - 1, tl.float32)
    b_zero = round_to(_clamp(b_low, _largest(DTYPE)), DTYPE).to(tl.float32)
    b_scale, b_inverse = _stored_scale(tl.div_rn(b_high - b_low, b_levels), 1 if ROOMY else HALF - 1, DTYPE)
    b_most = tl.where(b_high > -b_low, b_high, -b_low)
    b_sym_scale, b_sym_inverse = _stored_scale(tl.div_rn(b_most, b_levels), HALF if ROOMY else 2 * HALF, DTYPE)
    b_sym_zero = round_to(b_sym_scale * -HALF, DTYPE).to(tl.float32)
    b_error = tl.zeros_like(tiles[0])
    b_sym_error = tl.zeros_like(tiles[0])
    codes, syms = (), ()
    for i in tl.static_range(len(tiles)):
        b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, 1), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i] - tl.expand_dims(b_zero, 1), b_divisor)
        codes = codes + (_code(b_ratio, b_inverse, 0, HALF - 1),)
        b_divisor = tl.broadcast_to(tl.expand_dims(b_sym_scale, 1), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i], b_divisor)
        syms = syms + (_code(b_ratio, b_sym_inverse, 1 - HALF, HALF - 1),)
        b_error += tl.abs(_difference(codes[i], b_scale, b_zero, tiles[i]))
        b_sym_error += tl.abs(_difference(syms[i], b_sym_scale, b_sym_zero, tiles[i]))
    keep = tl.sum(b_error, 1) <= tl.sum(b_sym_error, 1)
    chosen = _choose(keep, codes, syms)
    return chosen, tl.where(keep, b_scale, b_sym_scale), tl.where(keep, b_zero, b_sym_zero)


@triton.jit
def _symmetric(tiles, b_high, b_low, BITS: tl.constexpr, DTYPE: tl.constexpr):
    HALF: tl.constexpr = 1 << (BITS - 1)
    b_most = tl.where(b_high > -b_low, b_high, -b_low)
    b_scale = tl.div_rn(b_most, tl.full(b_most.shape, HALF - 1, tl.float32))
    b_scale, b_inverse = _stored_scale(b_scale, HALF - 1, DTYPE)
    b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, 1), tiles[0].shape)
    codes = ()
    for i in tl.static_range(len(tiles)):  # the paper's own format divides, as its authors do
        codes = codes + (_code(tl.div_rn(tiles[i], b_divisor), b_inverse, 1 - HALF, HALF - 1),)
    return codes, b_scale, b_scale


@triton.jit
def _signed(tiles, b_high, b_low, REACH: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes run over ``[-HALF, HALF)``: the sign of the scale puts the extreme value on the longer side."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    b_most = tl.where(b_high > -b_low, -b_high, -b_low)
    b_scale, b_inverse = _stored_scale(b_most * (1.0 / HALF), REACH, DTYPE)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = tiles[i] * tl.expand_dims(b_inverse, 1)
        codes = codes + (_code(b_ratio, b_inverse, -HALF, HALF - 1),)
    return codes, b_scale, b_scale


@triton.jit
def _asymmetric(tiles, b_high, b_low, b_anchor, BITS: tl.constexpr, DTYPE: tl.constexpr):
    LEVELS: tl.constexpr = (1 << BITS) - 1
    # code * scale alone reaches high - low, for which float32 may be too small
    SPAN: tl.constexpr = 1 if tl.float16 == DTYPE else LEVELS
    b_levels = tl.full(b_high.shape, LEVELS, tl.float32)
    b_scale = tl.div_rn(b_high, b_levels) - tl.div_rn(b_low, b_levels)
    b_scale, b_inverse = _stored_scale(b_scale, SPAN, DTYPE)
    b_zero = b_low
    if b_anchor is not None:
        b_past = _past_code(b_anchor, b_low, b_inverse, BITS)
        b_zero = fma(tl.where(b_inverse == b_inverse, b_past, 0.0), b_scale, b_low)
    b_zero = round_to(_clamp(b_zero, _largest(DTYPE)), DTYPE).to(tl.float32)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = (tiles[i] - tl.expand_dims(b_zero, 1)) * tl.expand_dims(b_inverse, 1)
        codes = codes + (_code(b_ratio, b_inverse, 0, LEVELS),)
    return codes, b_scale, b_zero


@triton.jit
def _squared_error(tiles, codes, b_scale, b_zero):
    b_error = tl.zeros_like(tiles[0])
    for i in tl.static_range(len(tiles)):
        b_difference = _difference(codes[i], b_scale, b_zero, tiles[i])
        b_error += b_difference * b_difference
    return tl.sum(b_error, 1)


@triton.jit
def _hybrid(tiles, b_high, b_low, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Signed or asymmetric; a signed group is an asymmetric one whose zero point is -HALF scales."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    # its zero point is -HALF scales, and its codes go up to 2 * HALF - 1; float16 has room for these
    REACH: tl.constexpr = HALF if tl.float16 == DTYPE else 2 * HALF
    signed, b_scale, _ = _signed(tiles, b_high, b_low, REACH, BITS, DTYPE)
    b_signed_zero = round_to(b_scale * -HALF, DTYPE).to(tl.float32)
    codes, b_wide, b_zero = _asymmetric(tiles, b_high, b_low, None, BITS, DTYPE)
    b_signed_error = _squared_error(tiles, signed, b_scale, b_signed_zero)
    take = b_signed_error <= _squared_error(tiles, codes, b_wide, b_zero)
    chosen = _choose(take, signed, codes)
    return chosen, tl.where(take, b_scale, b_wide), tl.where(take, b_signed_zero, b_zero)


@triton.jit
def _in_float32(tiles):
    wide = ()
    for i in tl.static_range(len(tiles)):
        wide = wide + (tiles[i].to(tl.float32),)
    return wide


@triton.jit
def quantize_set(tiles, b_anchor, MODE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Groups that run over ``tiles`` and their rows: unsigned codes, scales, zero points.

    ``b_anchor``: for mode ``anchored``, the element of each group that is to lie on a code.

    The modes are those of ``reference.quantize_groups``. Zero points are meaningless in modes without, and where a word
    (int32, below 2^16) in place of the scale holds both.
    """
    halves = tiles  # a GPU compares two float16 at once, or three
    tiles = _in_float32(tiles)
    if halves[0].dtype != tl.float16:
        halves = tiles
    b_high = halves[0]
    b_low = halves[0]
    for i in tl.static_range(1, len(halves)):
        b_high = _max_nan(b_high, halves[i])
        b_low = _min_nan(b_low, halves[i])
    b_high = _clamp(tl.reduce(b_high, 1, _max_nan).to(tl.float32), F32_MAX)
    b_low = _clamp(tl.reduce(b_low, 1, _min_nan).to(tl.float32), F32_MAX)
    if is_paired(DTYPE):
        return _paired(tiles, b_high, b_low, b_anchor, MODE, BITS)
    else:
        if MODE == "symmetric":
            codes, b_scale, b_zero = _symmetric(tiles, b_high, b_low, BITS, DTYPE)
        elif MODE == "signed":
            codes, b_scale, b_zero = _signed(tiles, b_high, b_low, 1 << (BITS - 1), BITS, DTYPE)
        elif MODE == "asymmetric" or MODE == "anchored":
            codes, b_scale, b_zero = _asymmetric(tiles, b_high, b_low, b_anchor, BITS, DTYPE)
        elif MODE == "hybrid":
            codes, b_scale, b_zero = _hybrid(tiles, b_high, b_low, BITS, DTYPE)
        else:
            codes, b_scale, b_zero = _paper_hybrid(tiles, b_high, b_low, BITS, DTYPE)
        pairs = ()
        for i in tl.static_range(0, len(codes), 2):
            pairs = pairs + (_both_halves(codes[i], codes[i + 1]),)
        return pairs, b_scale, b_zero


@triton.constexpr_function
def field_of(is_key, slices, sub, slice_lo):
    """The field of a slice and a sub-range, see ``kernels/layout.py``."""
    return sub * slices + slice_lo if is_key else slice_lo * (16 // slices) + sub


@triton.constexpr_function
def start_of_plane(bits):
    """What a plane has to begin with, so that the ``PAIR_BIAS`` of its whole fields ends in zero."""
    whole = 16 // bits
    bias = sum(0x4B000000 << (position * bits) for position in range(whole))
    return (2**31 - bias) % 2**32 - 2**31


@triton.jit
def _add_to_planes(planes, b_codes, FIELD: tl.constexpr, BITS: tl.constexpr):
    """Words ``planes`` (``BITS`` tensors) with a field of both halves set, see ``layout.field_bits``."""
    WHOLE: tl.constexpr = 16 // BITS
    SPARE: tl.constexpr = 16 - WHOLE * BITS
    FIRST: tl.constexpr = (FIELD - WHOLE * BITS) * BITS  # place of a spread field's lowest bit among the spare ones
    new = ()
    for j in tl.static_range(BITS):
        b_word = planes[j]
        if FIELD < WHOLE * BITS:
            if j == FIELD // WHOLE:
                b_word = in_order(b_word + (b_codes << (FIELD % WHOLE * BITS)))
        elif j * SPARE < FIRST + BITS and (j + 1) * SPARE > FIRST:
            b_bits = b_codes >> (j * SPARE - FIRST) if j * SPARE > FIRST else b_codes << (FIRST - j * SPARE)
            b_word = in_order(b_word + ((b_bits & (((1 << SPARE) - 1) * 0x10001)) << (WHOLE * BITS)))
        new = new + (b_word,)
    return new


@triton.constexpr_function
def tile_columns(is_key, block, low, cols):
    """Columns of a block (``kernels/layout.py``), padded to a power of two."""
    return block * low // 16 if is_key else cols * block // 256


@triton.jit
def _least_tokens(load, of_channels, source, first, NB: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr):
    """The token of least norm of a group of each of ``NB`` blocks, as its distance from the group's first, ``[NB]``.

    ``first [NB]`` are the first tokens of the groups. It is the first of several; none with NaN, unless all have it.
    """
    token = first[:, None] + tl.arange(0, GROUP)[None, :]
    token = tl.reshape(token, (NB * GROUP, 1))
    b_sum = tl.zeros((NB * GROUP, 16), tl.float32)
    for channel0 in range(0, D, 16):
        channel = channel0 + tl.arange(0, 16)[None, :]
        numbers = of_channels(source, channel, None, (NB * GROUP, 16))
        b_x = load(source, numbers, token, channel, None).to(tl.float32)
        b_sum += b_x * b_x
    b_norm = tl.reshape(tl.sum(b_sum, 1), (NB, GROUP))
    b_norm = tl.where(b_norm == b_norm, b_norm, float("inf"))
    return tl.argmin(b_norm, 1)


@triton.jit
def encode_blocks(
    load,
    of_channels,
    source,
    codes,
    scales,
    left,
    NB: tl.constexpr,
    IS_KEY: tl.constexpr,
    MODE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    D: tl.constexpr,
    LO: tl.constexpr,
    COLS: tl.constexpr,
):
    """Write blocks to ``codes`` and ``scales``, pointers to the first word and the first scale of the first one.

    Args:
        load: ``load(source, numbers, token, channel, real)`` gives elements in the cache's dtype; the last three
            broadcast to a tile, and what is not real is anything (``real`` None: all are). Tokens count from the first
            block's first. ``numbers`` are what ``of_channels(source, channel, real, shape)`` gave for a tile of that
            shape: what elements of a channel share.
        left: how many blocks there are, 1 or more; those behind ``NB`` are left alone.
        NB: how many blocks a program takes at most.
    """
    if BITS == 0:
        channel, real = tile_channels(IS_KEY, BLOCK, D, COLS)
        for block in range(tl.minimum(left, NB)):
            token = block * BLOCK + tl.arange(0, BLOCK)[:, None]
            number = of_channels(source, channel[None, :], real[None, :], (1, COLS))
            b_x = load(source, number, token, channel[None, :], real[None, :])
            tl.store(codes + token * D + channel[None, :], b_x, mask=real[None, :])
    else:
        DTYPE: tl.constexpr = scales.dtype.element_ty
        HAS_ZERO: tl.constexpr = has_zero(MODE)
        PADDED: tl.constexpr = tile_columns(IS_KEY, BLOCK, LO, COLS)
        if IS_KEY:
            SLICES: tl.constexpr = LO
            COLUMNS: tl.constexpr = PADDED
            HI: tl.constexpr = D // (16 * LO)
        else:
            SLICES: tl.constexpr = BLOCK // 16
            COLUMNS: tl.constexpr = D * SLICES // 16
            HI: tl.constexpr = 1
        SUBS: tl.constexpr = 16 // SLICES
        # two tokens of a column share what `of_channels` gives
        TOGETHER: tl.constexpr = min(SUBS, 2) if IS_KEY else 1
        START: tl.constexpr = start_of_plane(BITS)
        RUN: tl.constexpr = 8 if COLUMNS % 8 == 0 else COLUMNS
        WIDTH: tl.constexpr = NB * PADDED
        block = tl.arange(0, WIDTH) // PADDED
        column = tl.arange(0, WIDTH) % PADDED
        if not IS_KEY:
            # no more channels a thread than it takes to have all the tokens of them
            column = tl.max_contiguous(column, max(1, WIDTH // 32))
        real = (column < COLUMNS) & (block < left)
        # every column is there in most formats, and a load without a mask costs less
        there = None if COLUMNS == PADDED else (column < COLUMNS)[:, None]
        pair = tl.arange(0, 8)
        # a block that is not there is read as the last one that is
        first = tl.minimum(block, left - 1) * BLOCK
        p_codes = codes + block * block_words(BITS, BLOCK, D)
        p_scales = scales + block * block_params(BITS, MODE, GROUP, BLOCK, D, DTYPE)
        for hi in range(HI):
            planes = ()
            for _ in tl.static_range(BITS):
                planes = planes + (tl.full((WIDTH, 8), START, tl.int32),)
            for group in tl.static_range(SLICES * 16 // GROUP):
                if MODE == "anchored":
                    begins = tl.minimum(tl.arange(0, NB), left - 1) * BLOCK + group * GROUP
                    least = _least_tokens(load, of_channels, source, begins, NB, GROUP, D)
                    least = tl.reshape(tl.broadcast_to(least[:, None], (NB, PADDED)), (WIDTH,))
                for sub in tl.static_range(0, SUBS, TOGETHER):
                    tiles = ()
                    for i in tl.static_range(GROUP // 16):
                        lane0 = (group * (GROUP // 16) + i) * 16
                        if IS_KEY:
                            # [columns, halves of a slice, lanes]: 16 bytes a load, all lanes of a column in one thread
                            b_lane = tl.arange(0, 2)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
                            b_channel = hi * (16 * LO) + lane0 + b_lane
                            numbers = of_channels(source, b_channel, None, (WIDTH, 2, 8))
                        for t in tl.static_range(TOGETHER):
                            place = (sub + t) * COLUMNS + column
                            if IS_KEY:
                                b_x = load(source, numbers, (first + place)[:, None, None], b_channel, None)
                                b_first, b_second = tl.split(tl.reshape(b_x, (WIDTH, 8, 2)))
                            else:
                                b_token = first[:, None] + (lane0 + pair * 2)[None, :]
                                numbers = of_channels(source, place[:, None], there, (WIDTH, 8))
                                b_first = load(source, numbers, b_token, place[:, None], there)
                                b_second = load(source, numbers, b_token + 1, place[:, None], there)
                            tiles = tiles + (b_first, b_second)
                    for t in tl.static_range(TOGETHER):
                        own = ()
                        for i in tl.static_range(GROUP // 16):
                            own = own + (tiles[2 * (i * TOGETHER + t)], tiles[2 * (i * TOGETHER + t) + 1])
                        b_anchor = None
                        if MODE == "anchored":
                            at = first + group * GROUP + least
                            place = (sub + t) * COLUMNS + column
                            present = None if COLUMNS == PADDED else column < COLUMNS
                            numbers = of_channels(source, place, present, (WIDTH,))
                            b_anchor = load(source, numbers, at, place, present).to(tl.float32)
                        set_codes, b_scale, b_zero = quantize_set(own, b_anchor, MODE, BITS, DTYPE)
                        for i in tl.static_range(GROUP // 16):
                            planes = _add_to_planes(
                                planes,
                                set_codes[i],
                                field_of(IS_KEY, SLICES, sub + t, group * (GROUP // 16) + i),
                                BITS,
                            )
                        if IS_KEY:
                            p_scale = p_scales + (
                                (hi * (16 * LO // GROUP) + group) * BLOCK + (sub + t) * COLUMNS + column
                            )
                        else:
                            p_scale = p_scales + (group * D + (sub + t) * COLUMNS + column)
                        tl.store(p_scale, b_scale.to(DTYPE), mask=real)
                        if HAS_ZERO and not is_paired(DTYPE):
                            tl.store(p_scale + BLOCK * D // GROUP, b_zero.to(DTYPE), mask=real)
            p_word = p_codes + (hi * (BITS * COLUMNS * 8) + column // RUN * (RUN * 8) + column % RUN)
            p_word = p_word[:, None] + pair[None, :] * RUN
            for j in tl.static_range(BITS):
                tl.store(p_word + j * (COLUMNS * 8), planes[j], mask=real[:, None])
