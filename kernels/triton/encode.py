"""Quantizing and packing one block inside a Triton kernel: ``reference.encode_blocks`` for a single block."""

from __future__ import annotations

import triton
import triton.language as tl

from .casts import round_to
from .unpack import has_zero, tile_channels

# added to and taken from a float32 of magnitude below 2^22, it leaves the nearest integer, ties to even
ROUND = tl.constexpr(12582912.0)
F32_MAX = tl.constexpr(3.4028234663852886e38)
F32_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _clamp(x, LIMIT: tl.constexpr):
    """``x`` within ``[-LIMIT, LIMIT]``; NaN stays NaN, which tl.clamp does not promise."""
    return tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.constexpr_function
def _largest(dtype, reach=1):
    """The largest number of a scale dtype of which ``reach`` times is finite too."""
    limits = {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp32": 3.4028234663852886e38}
    return limits[str(dtype)] / reach


@triton.jit
def _affine_codes(
    b_x,
    b_scale,
    b_zero,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    REACH: tl.constexpr,
    AXIS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """``code = round((x - zero) / scale)`` in ``[LOW, HIGH]``, for the scale as it is stored in ``DTYPE``.

    The scale is limited so that ``REACH`` of it is finite.
    Returns codes (float32, whole) and the stored scale. A scale that is zero or subnormal gives code and scale 0.
    """
    b_stored = round_to(_clamp(b_scale, _largest(DTYPE, REACH)), DTYPE)
    b_rounded = b_stored.to(tl.float32)
    empty = tl.abs(b_rounded) < F32_TINY
    b_rounded = tl.where(empty, 1.0, b_rounded)
    b_code = tl.div_rn(b_x - tl.expand_dims(b_zero, AXIS), tl.broadcast_to(tl.expand_dims(b_rounded, AXIS), b_x.shape))
    nan = b_code != b_code
    b_code = tl.minimum(tl.maximum(b_code, LOW), HIGH)
    b_code = (b_code + ROUND) - ROUND
    b_code = tl.where(nan | tl.expand_dims(empty, AXIS), 0.0, b_code)
    return b_code, tl.where(empty, 0.0, b_stored.to(tl.float32)).to(DTYPE)


@triton.jit
def _decoded(b_code, b_scale, b_zero, AXIS: tl.constexpr):
    """What codes stand for, float32."""
    b_code = b_code * tl.expand_dims(b_scale.to(tl.float32), AXIS)
    return b_code + tl.expand_dims(b_zero.to(tl.float32), AXIS)


@triton.jit
def quantize_groups(b_x, AXIS: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Groups along ``AXIS`` of ``b_x`` (float32): unsigned codes int32, scales and zero points in ``DTYPE``.

    The modes are those of ``reference.quantize_groups``. Zero points are meaningless in modes without.
    """
    HALF: tl.constexpr = 1 << (BITS - 1)
    nan = tl.max((b_x != b_x).to(tl.int32), AXIS) > 0  # maxima drop NaN, the reference keeps it
    b_x = _clamp(b_x, F32_MAX)
    b_high = tl.where(nan, float("nan"), tl.max(b_x, AXIS))
    b_low = tl.where(nan, float("nan"), tl.min(b_x, AXIS))
    b_none = tl.zeros_like(b_high)
    if MODE == "symmetric":
        b_most = tl.where(b_high > -b_low, b_high, -b_low)
        b_scale = tl.div_rn(b_most, b_none + (HALF - 1))
        b_code, b_scale = _affine_codes(b_x, b_scale, b_none, 1 - HALF, HALF - 1, HALF - 1, AXIS, DTYPE)
        return (b_code + HALF).to(tl.int32), b_scale, b_scale
    elif MODE == "paper_hybrid":
        # asymmetric with a bit less, or symmetric where its absolute errors sum up to less
        ROOMY: tl.constexpr = tl.float16 == DTYPE
        b_zero = round_to(_clamp(b_low, _largest(DTYPE)), DTYPE)
        b_scale = tl.div_rn(b_high - b_low, b_none + (HALF - 1))
        b_code, b_scale = _affine_codes(
            b_x, b_scale, b_zero.to(tl.float32), 0, HALF - 1, 1 if ROOMY else HALF - 1, AXIS, DTYPE
        )
        b_most = tl.where(b_high > -b_low, b_high, -b_low)
        b_sym, b_sym_scale = _affine_codes(
            b_x, tl.div_rn(b_most, b_none + (HALF - 1)), b_none, 1 - HALF, HALF - 1,
            HALF if ROOMY else 2 * HALF, AXIS, DTYPE,
        )  # fmt: skip
        b_sym += HALF
        b_sym_zero = round_to(b_sym_scale.to(tl.float32) * -HALF, DTYPE)
        b_error = tl.sum(tl.abs(_decoded(b_code, b_scale, b_zero, AXIS) - b_x), AXIS)
        b_sym_error = tl.sum(tl.abs(_decoded(b_sym, b_sym_scale, b_sym_zero, AXIS) - b_x), AXIS)
        keep = b_error <= b_sym_error
        return (
            tl.where(tl.expand_dims(keep, AXIS), b_code, b_sym).to(tl.int32),
            tl.where(keep, b_scale.to(tl.float32), b_sym_scale.to(tl.float32)).to(DTYPE),
            tl.where(keep, b_zero.to(tl.float32), b_sym_zero.to(tl.float32)).to(DTYPE),
        )
    else:
        if MODE != "asymmetric":
            # a hybrid group holds the zero point -HALF * scale and codes to 2 * HALF - 1; float16 has room for these
            REACH: tl.constexpr = 2 * HALF if MODE == "hybrid" and tl.float16 != DTYPE else HALF
            # codes run over [-HALF, HALF): the sign of the scale puts the extreme value on the longer side
            b_most = tl.where(b_high > -b_low, -b_high, -b_low)
            b_signed, b_signed_scale = _affine_codes(
                b_x, b_most * (1.0 / HALF), b_none, -HALF, HALF - 1, REACH, AXIS, DTYPE
            )
            b_signed += HALF
            if MODE == "signed":
                return b_signed.to(tl.int32), b_signed_scale, b_signed_scale
        if MODE != "signed":
            LEVELS: tl.constexpr = (1 << BITS) - 1
            # code * scale alone reaches high - low, for which float32 may be too small
            SPAN: tl.constexpr = 1 if tl.float16 == DTYPE else LEVELS
            b_zero = round_to(_clamp(b_low, _largest(DTYPE)), DTYPE)
            b_levels = b_none + LEVELS
            b_scale = tl.div_rn(b_high, b_levels) - tl.div_rn(b_low, b_levels)
            b_code, b_scale = _affine_codes(b_x, b_scale, b_zero.to(tl.float32), 0, LEVELS, SPAN, AXIS, DTYPE)
            if MODE == "asymmetric":
                return b_code.to(tl.int32), b_scale, b_zero
            if MODE == "hybrid":
                # a symmetric group is an asymmetric one whose zero point is -HALF scales
                b_signed_zero = round_to(b_signed_scale.to(tl.float32) * -HALF, DTYPE)
                b_error = _decoded(b_code, b_scale, b_zero, AXIS) - b_x
                b_signed_error = _decoded(b_signed, b_signed_scale, b_signed_zero, AXIS) - b_x
                take = tl.sum(b_signed_error * b_signed_error, AXIS) <= tl.sum(b_error * b_error, AXIS)
                return (
                    tl.where(tl.expand_dims(take, AXIS), b_signed, b_code).to(tl.int32),
                    tl.where(take, b_signed_scale.to(tl.float32), b_scale.to(tl.float32)).to(DTYPE),
                    tl.where(take, b_signed_zero.to(tl.float32), b_zero.to(tl.float32)).to(DTYPE),
                )


@triton.jit
def _plane(b_code, field, J: tl.constexpr, BITS: tl.constexpr):
    """What each code adds to half ``J`` of its lane, see ``layout.field_bits``."""
    WHOLE: tl.constexpr = 16 // BITS
    SPARE: tl.constexpr = 16 - WHOLE * BITS
    SPREAD: tl.constexpr = WHOLE * BITS
    b_half = tl.where(field // WHOLE == J, b_code << (field % WHOLE * BITS), 0)
    if SPARE > 0:
        first = tl.where(field >= SPREAD, (field - SPREAD) * BITS, 0)
        b_rest = (((b_code << first) >> (J * SPARE)) & ((1 << SPARE) - 1)) << SPREAD
        b_half = tl.where(field >= SPREAD, b_rest, tl.where(field < SPREAD, b_half, 0))
    return b_half


@triton.jit
def encode_block(
    b_x,
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
    """Write the block ``b_x [BLOCK, COLS]`` (cache dtype, columns as ``tile_channels``) to ``codes`` and ``scales``.

    The two are pointers to the first word and the first scale of the block.
    """
    token = tl.arange(0, BLOCK)
    channel, real = tile_channels(IS_KEY, BLOCK, D, COLS)
    if BITS == 0:
        tl.store(codes + (token[:, None] * D + channel[None, :]), b_x, mask=real[None, :])
    else:
        DTYPE: tl.constexpr = scales.dtype.element_ty
        HAS_ZERO: tl.constexpr = has_zero(MODE)
        GROUPS: tl.constexpr = BLOCK * D // GROUP
        halves = codes.to(tl.pointer_type(tl.int16))
        lane = tl.arange(0, 16)
        if IS_KEY:
            b_x = tl.reshape(b_x.to(tl.float32), (BLOCK, COLS // GROUP, GROUP))
            b_code, b_scale, b_zero = quantize_groups(b_x, 2, MODE, BITS, DTYPE)
            group = tl.arange(0, COLS // GROUP)[None, :]
            p_scale = scales + (group * BLOCK + token[:, None])
            mask = (group * GROUP < D) & (token[:, None] < BLOCK)
            SUBS: tl.constexpr = 16 // LO
            COLUMNS: tl.constexpr = BLOCK // SUBS
            HI: tl.constexpr = COLS // (16 * LO)
            b_code = tl.reshape(b_code, (SUBS, COLUMNS, HI, LO, 16))
            sub = tl.arange(0, SUBS)[:, None, None, None, None]
            low = tl.arange(0, LO)[None, None, None, :, None]
            field = sub * LO + low
            high = tl.arange(0, HI)[None, :, None]
            column = tl.arange(0, COLUMNS)[:, None, None]
            row = high * 8 + lane[None, None, :] // 2
            p_half = halves + (row * (BITS * COLUMNS * 2) + column * 2 + lane[None, None, :] % 2)
            mask_half = (high * (16 * LO) < D) & (column < COLUMNS) & (lane[None, None, :] < 16)
            for j in tl.static_range(BITS):
                b_half = tl.sum(tl.sum(_plane(b_code, field, j, BITS), 3), 0)
                tl.store(p_half + j * (COLUMNS * 2), b_half.to(tl.int16), mask=mask_half)
        else:
            b_x = tl.reshape(b_x.to(tl.float32), (BLOCK // GROUP, GROUP, COLS))
            b_code, b_scale, b_zero = quantize_groups(b_x, 1, MODE, BITS, DTYPE)
            group = tl.arange(0, BLOCK // GROUP)[:, None]
            p_scale = scales + (group * D + channel[None, :])
            mask = real[None, :] & (group < BLOCK // GROUP)
            SLICES: tl.constexpr = BLOCK // 16
            SUBS: tl.constexpr = 16 // SLICES
            COLUMNS: tl.constexpr = D // SUBS
            PADDED: tl.constexpr = COLS // SUBS
            b_code = tl.reshape(b_code, (SLICES, 16, SUBS, PADDED))
            field = tl.arange(0, SLICES)[:, None, None, None] * SUBS + tl.arange(0, SUBS)[None, None, :, None]
            column = tl.arange(0, PADDED)[None, :]
            p_half = halves + (lane[:, None] // 2 * (BITS * COLUMNS * 2) + column * 2 + lane[:, None] % 2)
            mask_half = (column < COLUMNS) & (lane[:, None] < 16)
            for j in tl.static_range(BITS):
                b_half = tl.sum(tl.sum(_plane(b_code, field, j, BITS), 2), 0)
                tl.store(p_half + j * (COLUMNS * 2), b_half.to(tl.int16), mask=mask_half)
        tl.store(p_scale, b_scale, mask=mask)
        if HAS_ZERO:
            tl.store(p_scale + GROUPS, b_zero, mask=mask)
