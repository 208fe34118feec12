"""Quantizing and packing one block inside a Triton kernel: ``reference.encode_blocks`` for a single block.

A block is taken in tiles of one field and one half of the words (``kernels/layout.py``), ``[columns, lane pairs]``, so
that what goes into a word meets in one thread: packing is a multiply-add a code. Tiles that share groups make a set,
which is loaded, quantized and packed before the next one.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .. import short_scales
from .casts import round_to
from .unpack import has_zero, is_paired, tile_channels

# added to and taken from a float32 of magnitude below 2^22, it leaves the nearest integer, ties to even
ROUND = tl.constexpr(12582912.0)
F32_MAX = tl.constexpr(3.4028234663852886e38)
F32_TINY = tl.constexpr(1.1754943508222875e-38)
# of pairs, see `kernels/short_scales.py`
PAIR_MAX = tl.constexpr(short_scales.LARGEST["pair8"])
SMALLEST_NORMAL = tl.constexpr(short_scales.SMALLEST_NORMAL)
NEAREST_BITS = tl.constexpr(short_scales.NEAREST_BITS)


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
def _code(b_ratio, b_inverse, LOW: tl.constexpr, HIGH: tl.constexpr, AXIS: tl.constexpr):
    """``round(ratio)`` within ``[LOW, HIGH]``, float32; zero where the inverse of the scale is NaN."""
    b_code = tl.minimum(tl.maximum(b_ratio, LOW), HIGH)
    return tl.where(tl.expand_dims(b_inverse == b_inverse, AXIS), (b_code + ROUND) - ROUND, 0.0)


@triton.jit
def _difference(b_code, b_scale, b_zero, b_x, AXIS: tl.constexpr):
    return b_code * tl.expand_dims(b_scale, AXIS) + tl.expand_dims(b_zero, AXIS) - b_x


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
def _pair_codes(tiles, b_scale, b_zero, AXIS: tl.constexpr, BITS: tl.constexpr):
    """Codes for a scale as it is stored, the zero point in steps as it is stored, and that in numbers."""
    STEP: tl.constexpr = 2.0 ** (BITS - 6)
    b_ones = tl.full(b_scale.shape, 1.0, tl.float32)
    empty = b_scale == 0.0
    b_inverse = tl.div_rn(b_ones, tl.where(empty, 1.0, b_scale))
    b_steps = tl.minimum(tl.maximum(b_zero * b_inverse * (1.0 / STEP), -127.0), 127.0)
    b_steps = tl.where(empty, 0.0, (b_steps + ROUND) - ROUND)
    b_zero = b_steps * STEP * b_scale
    b_valid = tl.where(empty, float("nan"), b_inverse)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = (tiles[i] - tl.expand_dims(b_zero, AXIS)) * tl.expand_dims(b_inverse, AXIS)
        codes = codes + (_code(b_ratio, b_valid, 0, (1 << BITS) - 1, AXIS),)
    return codes, b_steps, b_zero


@triton.jit
def _pair_word(b_scale, b_steps):
    """``short_scales.to_pair`` as int32 below 2^16, which the caller stores as int16."""
    b_steps = tl.where(b_scale == b_scale, b_steps, 0.0).to(tl.int32)
    b_bits = b_scale.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0x7F80
    b_bits = tl.where(b_scale == b_scale, b_bits, 0x7F80)
    return b_bits | tl.abs(b_steps) | tl.where(b_steps < 0, 0x8000, 0)


@triton.jit
def _paired(tiles, b_high, b_low, AXIS: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr):
    """``reference._paired``: codes and the words of scales and zero points."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    LEVELS: tl.constexpr = (1 << BITS) - 1
    REACH: tl.constexpr = 127 * 2.0 ** (BITS - 6)
    b_levels = tl.full(b_high.shape, LEVELS, tl.float32)
    b_width = tl.div_rn(b_high, b_levels) - tl.div_rn(b_low, b_levels)
    b_scale = _pair_scale(_max_nan(b_width, tl.abs(b_low) * (1.0 / REACH)), BITS)
    b_larger = b_scale + _quantum(b_scale)
    b_larger = tl.where(b_larger > PAIR_MAX, PAIR_MAX, b_larger)
    b_scale = tl.where(tl.abs(b_low) > b_scale * REACH, b_larger, b_scale)
    codes, b_steps, b_zero = _pair_codes(tiles, b_scale, b_low, AXIS, BITS)
    b_word = _pair_word(b_scale, b_steps)
    if MODE == "hybrid":
        # signed, with a positive scale: the level without a counterpart lies on the side of the extreme value
        positive = b_high > -b_low
        b_signed = _pair_scale(tl.where(positive, b_high, -b_low) * (1.0 / HALF), BITS)
        b_wanted_zero = tl.where(positive, 1.0 - HALF, -1.0 * HALF) * b_signed
        signed, b_signed_steps, b_signed_zero = _pair_codes(tiles, b_signed, b_wanted_zero, AXIS, BITS)
        b_signed_error = _squared_error(tiles, signed, b_signed, b_signed_zero, AXIS)
        take = b_signed_error <= _squared_error(tiles, codes, b_scale, b_zero, AXIS)
        codes = _choose(take, signed, codes, AXIS)
        b_word = tl.where(take, _pair_word(b_signed, b_signed_steps), b_word)
    return codes, b_word, b_word


@triton.jit
def _choose(take, first, second, AXIS: tl.constexpr):
    """The tiles of ``first`` for the groups that ``take`` them, else those of ``second``."""
    chosen = ()
    for i in tl.static_range(len(first)):
        chosen = chosen + (tl.where(tl.expand_dims(take, AXIS), first[i], second[i]),)
    return chosen


@triton.jit
def _paper_hybrid(tiles, b_high, b_low, AXIS: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
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
        b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, AXIS), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i] - tl.expand_dims(b_zero, AXIS), b_divisor)
        codes = codes + (_code(b_ratio, b_inverse, 0, HALF - 1, AXIS),)
        b_divisor = tl.broadcast_to(tl.expand_dims(b_sym_scale, AXIS), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i], b_divisor)
        syms = syms + (_code(b_ratio, b_sym_inverse, 1 - HALF, HALF - 1, AXIS) + HALF,)
        b_error += tl.abs(_difference(codes[i], b_scale, b_zero, tiles[i], AXIS))
        b_sym_error += tl.abs(_difference(syms[i], b_sym_scale, b_sym_zero, tiles[i], AXIS))
    keep = tl.sum(b_error, AXIS) <= tl.sum(b_sym_error, AXIS)
    chosen = _choose(keep, codes, syms, AXIS)
    return chosen, tl.where(keep, b_scale, b_sym_scale), tl.where(keep, b_zero, b_sym_zero)


@triton.jit
def _symmetric(tiles, b_high, b_low, AXIS: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    HALF: tl.constexpr = 1 << (BITS - 1)
    b_most = tl.where(b_high > -b_low, b_high, -b_low)
    b_scale = tl.div_rn(b_most, tl.full(b_most.shape, HALF - 1, tl.float32))
    b_scale, b_inverse = _stored_scale(b_scale, HALF - 1, DTYPE)
    b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, AXIS), tiles[0].shape)
    codes = ()
    for i in tl.static_range(len(tiles)):  # the paper's own format divides, as its authors do
        codes = codes + (_code(tl.div_rn(tiles[i], b_divisor), b_inverse, 1 - HALF, HALF - 1, AXIS) + HALF,)
    return codes, b_scale, b_scale


@triton.jit
def _signed(tiles, b_high, b_low, REACH: tl.constexpr, AXIS: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes run over ``[-HALF, HALF)``: the sign of the scale puts the extreme value on the longer side."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    b_most = tl.where(b_high > -b_low, -b_high, -b_low)
    b_scale, b_inverse = _stored_scale(b_most * (1.0 / HALF), REACH, DTYPE)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = tiles[i] * tl.expand_dims(b_inverse, AXIS)
        codes = codes + (_code(b_ratio, b_inverse, -HALF, HALF - 1, AXIS) + HALF,)
    return codes, b_scale, b_scale


@triton.jit
def _asymmetric(tiles, b_high, b_low, AXIS: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    LEVELS: tl.constexpr = (1 << BITS) - 1
    # code * scale alone reaches high - low, for which float32 may be too small
    SPAN: tl.constexpr = 1 if tl.float16 == DTYPE else LEVELS
    b_levels = tl.full(b_high.shape, LEVELS, tl.float32)
    b_zero = round_to(_clamp(b_low, _largest(DTYPE)), DTYPE).to(tl.float32)
    b_scale = tl.div_rn(b_high, b_levels) - tl.div_rn(b_low, b_levels)
    b_scale, b_inverse = _stored_scale(b_scale, SPAN, DTYPE)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = (tiles[i] - tl.expand_dims(b_zero, AXIS)) * tl.expand_dims(b_inverse, AXIS)
        codes = codes + (_code(b_ratio, b_inverse, 0, LEVELS, AXIS),)
    return codes, b_scale, b_zero


@triton.jit
def _squared_error(tiles, codes, b_scale, b_zero, AXIS: tl.constexpr):
    b_error = tl.zeros_like(tiles[0])
    for i in tl.static_range(len(tiles)):
        b_difference = _difference(codes[i], b_scale, b_zero, tiles[i], AXIS)
        b_error += b_difference * b_difference
    return tl.sum(b_error, AXIS)


@triton.jit
def _hybrid(tiles, b_high, b_low, AXIS: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Signed or asymmetric; a signed group is an asymmetric one whose zero point is -HALF scales."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    # its zero point is -HALF scales, and its codes go up to 2 * HALF - 1; float16 has room for these
    REACH: tl.constexpr = HALF if tl.float16 == DTYPE else 2 * HALF
    signed, b_scale, _ = _signed(tiles, b_high, b_low, REACH, AXIS, BITS, DTYPE)
    b_signed_zero = round_to(b_scale * -HALF, DTYPE).to(tl.float32)
    codes, b_wide, b_zero = _asymmetric(tiles, b_high, b_low, AXIS, BITS, DTYPE)
    b_signed_error = _squared_error(tiles, signed, b_scale, b_signed_zero, AXIS)
    take = b_signed_error <= _squared_error(tiles, codes, b_wide, b_zero, AXIS)
    chosen = _choose(take, signed, codes, AXIS)
    return chosen, tl.where(take, b_scale, b_wide), tl.where(take, b_signed_zero, b_zero)


@triton.jit
def quantize_set(tiles, AXIS: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Groups that run over ``tiles`` (float32) and their ``AXIS``: unsigned codes (float32), scales, zero points.

    The modes are those of ``reference.quantize_groups``. Zero points are meaningless in modes without, and where a word
    (int32, below 2^16) in place of the scale holds both.
    """
    b_high = tiles[0]
    b_low = tiles[0]
    for i in tl.static_range(1, len(tiles)):
        b_high = _max_nan(b_high, tiles[i])
        b_low = _min_nan(b_low, tiles[i])
    b_high = _clamp(tl.reduce(b_high, AXIS, _max_nan), F32_MAX)
    b_low = _clamp(tl.reduce(b_low, AXIS, _min_nan), F32_MAX)
    if is_paired(DTYPE):
        return _paired(tiles, b_high, b_low, AXIS, MODE, BITS)
    elif MODE == "symmetric":
        return _symmetric(tiles, b_high, b_low, AXIS, BITS, DTYPE)
    elif MODE == "signed":
        return _signed(tiles, b_high, b_low, 1 << (BITS - 1), AXIS, BITS, DTYPE)
    elif MODE == "asymmetric":
        return _asymmetric(tiles, b_high, b_low, AXIS, BITS, DTYPE)
    elif MODE == "hybrid":
        return _hybrid(tiles, b_high, b_low, AXIS, BITS, DTYPE)
    else:
        return _paper_hybrid(tiles, b_high, b_low, AXIS, BITS, DTYPE)


@triton.constexpr_function
def field_of(is_key, slices, sub, slice_lo):
    """The field of a slice and a sub-range, see ``kernels/layout.py``."""
    return sub * slices + slice_lo if is_key else slice_lo * (16 // slices) + sub


@triton.jit
def _add_to_planes(planes, b_code, FIELD: tl.constexpr, BITS: tl.constexpr):
    """Half-words ``planes`` (``BITS`` tensors, float32 whole numbers) with a field set, see ``layout.field_bits``."""
    WHOLE: tl.constexpr = 16 // BITS
    SPARE: tl.constexpr = 16 - WHOLE * BITS
    FIRST: tl.constexpr = (FIELD - WHOLE * BITS) * BITS  # place of a spread field's lowest bit among the spare ones
    new = ()
    for j in tl.static_range(BITS):
        b_half = planes[j]
        if FIELD < WHOLE * BITS:
            if j == FIELD // WHOLE:
                b_half += b_code * (1 << (FIELD % WHOLE * BITS))
        elif j * SPARE < FIRST + BITS and (j + 1) * SPARE > FIRST:
            b_bits = ((b_code.to(tl.int32) << FIRST) >> (j * SPARE)) & ((1 << SPARE) - 1)
            b_half += (b_bits << (WHOLE * BITS)).to(tl.float32)
        new = new + (b_half,)
    return new


@triton.jit
def encode_block(
    load,
    source,
    codes,
    scales,
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
    """Write a block to ``codes`` and ``scales``, pointers to its first word and first scale.

    ``load(source, token, channel, real)`` gives its elements in the cache's dtype; the three broadcast to a tile, and
    what is not real is not looked at.
    """
    if BITS == 0:
        token = tl.arange(0, BLOCK)[:, None]
        channel, real = tile_channels(IS_KEY, BLOCK, D, COLS)
        b_x = load(source, token, channel[None, :], real[None, :])
        tl.store(codes + token * D + channel[None, :], b_x, mask=real[None, :])
    else:
        DTYPE: tl.constexpr = scales.dtype.element_ty
        HAS_ZERO: tl.constexpr = has_zero(MODE)
        AXIS: tl.constexpr = 1 if IS_KEY else 0  # lane pairs
        if IS_KEY:
            SLICES: tl.constexpr = LO
            COLUMNS: tl.constexpr = BLOCK * LO // 16
            PADDED: tl.constexpr = COLUMNS
            HI: tl.constexpr = D // (16 * LO)
        else:
            SLICES: tl.constexpr = BLOCK // 16
            COLUMNS: tl.constexpr = D * SLICES // 16
            PADDED: tl.constexpr = COLS * SLICES // 16
            HI: tl.constexpr = 1
        SUBS: tl.constexpr = 16 // SLICES
        RUN: tl.constexpr = 8 if COLUMNS % 8 == 0 else COLUMNS
        column = tl.arange(0, PADDED)
        pair = tl.arange(0, 8)
        b_column = tl.expand_dims(column, AXIS)
        b_pair = tl.expand_dims(pair, 1 - AXIS)
        real = b_column < COLUMNS
        for hi in range(HI):
            low, high = (), ()  # planes of the first and the second halves of the words
            for _ in tl.static_range(BITS):
                low = low + (tl.zeros((PADDED, 8) if IS_KEY else (8, PADDED), tl.float32),)
                high = high + (tl.zeros((PADDED, 8) if IS_KEY else (8, PADDED), tl.float32),)
            for sub in tl.static_range(SUBS):
                for group in tl.static_range(SLICES * 16 // GROUP):
                    tiles = ()
                    for i in tl.static_range(GROUP // 16):
                        lane0 = (group * (GROUP // 16) + i) * 16
                        if IS_KEY:  # neighbouring lanes are neighbouring channels: one load for both
                            b_lane = lane0 + b_pair[:, :, None] * 2 + tl.arange(0, 2)[None, None, :]
                            b_both = load(
                                source,
                                (sub * COLUMNS + b_column)[:, :, None],
                                hi * (16 * LO) + b_lane,
                                real[:, :, None],
                            )
                            b_first, b_second = tl.split(b_both)
                        else:
                            b_first = load(source, lane0 + b_pair * 2, sub * COLUMNS + b_column, real)
                            b_second = load(source, lane0 + b_pair * 2 + 1, sub * COLUMNS + b_column, real)
                        tiles = tiles + (b_first.to(tl.float32), b_second.to(tl.float32))
                    set_codes, b_scale, b_zero = quantize_set(tiles, AXIS, MODE, BITS, DTYPE)
                    for i in tl.static_range(GROUP // 16):
                        low = _add_to_planes(
                            low, set_codes[2 * i], field_of(IS_KEY, SLICES, sub, group * (GROUP // 16) + i), BITS
                        )
                        high = _add_to_planes(
                            high, set_codes[2 * i + 1], field_of(IS_KEY, SLICES, sub, group * (GROUP // 16) + i), BITS
                        )
                    if IS_KEY:
                        p_scale = scales + ((hi * (16 * LO // GROUP) + group) * BLOCK + sub * COLUMNS + column)
                    else:
                        p_scale = scales + (group * D + sub * COLUMNS + column)
                    tl.store(p_scale, b_scale.to(DTYPE), mask=column < COLUMNS)
                    if HAS_ZERO and not is_paired(DTYPE):
                        tl.store(p_scale + BLOCK * D // GROUP, b_zero.to(DTYPE), mask=column < COLUMNS)
            p_word = codes + (hi * (BITS * COLUMNS * 8) + b_column // RUN * (RUN * 8) + b_pair * RUN + b_column % RUN)
            for j in tl.static_range(BITS):
                b_word = low[j].to(tl.int32) | (high[j].to(tl.int32) << 16)
                tl.store(p_word + j * (COLUMNS * 8), b_word, mask=real)
