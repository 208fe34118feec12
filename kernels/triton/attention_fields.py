"""Decode attention straight from packed words: the fast partial kernel.

What makes it fast (``docs/kernels.md`` has the instruction counts):

* Both products are transposed, keys times query and values times probabilities, so that codes are the 16 rows of the
  tensor core's A operand and the query heads its 8 columns: ``S^T = K Q^T``, ``O^T = V^T P^T``.
* A 32-bit word holds two neighbouring lanes, one a half. Masking one field of the word in place leaves two float16
  subnormals, ``code * 2^(at - 24)`` for a field at bit ``at``: a register of the A operand, made by one instruction.
  Fields lie within the ten mantissa bits, higher ones after a shift that all fields of the word share. The tensor core
  takes subnormal operands exactly (IEEE 754, no flushing; the products are exact in its float32 sums).
* ``2^(at - 24)`` depends on the slice of channels alone (keys: the query slice is divided by ``2^at``) or on the
  channel alone (values: the result is divided by it, once), see ``kernels/layout.py`` for the order of fields.
* A group's scale multiplies the float32 accumulators of its 32 codes. The offset of the codes is what these
  accumulators start from: ``sum (code - offset) q = sum code q - offset sum q``.
* The maximum that is taken out of the exponents is raised only when scores outgrow it by :data:`HEADROOM`, so that
  accumulators are rescaled a few times in all. Any base gives the same result; it only has to keep ``p`` in range.

The query enters as float16, each row scaled by the power of two that brings its largest element to ``[2^14, 2^15)``,
and the scores are scaled back in float32. That is exact but for elements ``2^28`` times smaller than the largest of
their row, and gives bfloat16 queries a range that float16 lacks.
"""

# ruff: noqa: RUF005, SIM102, SIM108
# Triton has no starred expressions in tuples, a ternary there is an operator on tensors, and so is `and`.
from __future__ import annotations

import triton
import triton.language as tl

from .addresses import quantized_end
from .attention_portable import row_scores
from .casts import INTERPRETED, round_to
from .constants import LOG2E, PAIR_SCALE, PAIR_ZERO, SUBNORMAL, is_paired, whole_fields, zero_step

#: Exponent of the largest probability when the base is set, and how far scores may then grow: p stays below 2^15.
START = tl.constexpr(6.0)
HEADROOM = tl.constexpr(8.0)
#: Stands for -inf as a base, so that no difference of scores is NaN.
LOWEST = tl.constexpr(-3.0e38)
#: The bits of START + HEADROOM as float32: an exponent beyond it asks for another base.
OUTGROWN = tl.constexpr(0x41600000)


@triton.constexpr_function
def field_plane(bits, field):
    """Which of the ``bits`` planes of words holds a field (3 bits: field 15 has a bit in each of the three)."""
    return field // whole_fields(bits)


@triton.constexpr_function
def field_at(bits, field):
    """The bit of a half at which the mask finds a field, after its shift."""
    if bits == 3:
        return (0, 3, 0, 3, 6, 0, 3, 6)[field % 8]
    return field % whole_fields(bits) * bits % 8


@triton.constexpr_function
def field_shift(bits, field):
    """By how much words are shifted down before the field is masked."""
    at = field % whole_fields(bits) * bits
    return at - (0, 3, 0, 3, 6, 0, 3, 6)[field % 8] if bits == 3 else at // 8 * 8


@triton.constexpr_function
def both_halves(mask):
    return mask | mask << 16


@triton.jit
def masked_field(planes, FIELD: tl.constexpr, BITS: tl.constexpr):
    """Field ``FIELD`` of words ``planes`` (a tuple of ``BITS`` tensors), all other bits zero."""
    if BITS == 3 and FIELD == 15:
        b_low = (planes[0] >> 9) & both_halves(1 << 6)
        b_mid = (planes[1] >> 8) & both_halves(1 << 7)
        return ((planes[2] >> 7) & both_halves(1 << 8)) | b_mid | b_low
    else:
        b_word = planes[field_plane(BITS, FIELD)]
        SHIFT: tl.constexpr = field_shift(BITS, FIELD)
        if SHIFT > 0:
            b_word = b_word >> SHIFT
        return b_word & both_halves(((1 << BITS) - 1) << field_at(BITS, FIELD))


@triton.jit
def halves(b_word):
    """Words ``[R, 8]`` as their float16 halves ``[R, 16]``. No instruction: a word is a register of an operand."""
    b_low = b_word.to(tl.int16).to(tl.float16, bitcast=True)
    b_high = (b_word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.reshape(tl.join(b_low, b_high), (b_word.shape[0], 16))


@triton.jit
def field_operand(planes, FIELD: tl.constexpr, PARTNER: tl.constexpr, BITS: tl.constexpr):
    """The A operand ``[R, 16 lanes]`` of a field. Planes of 8 columns give 8 rows; ``FIELD + PARTNER`` the other 8."""
    b_word = masked_field(planes, FIELD, BITS)
    if b_word.shape[0] == 8:
        b_word = tl.join(b_word, masked_field(planes, FIELD + PARTNER, BITS))
        b_word = tl.reshape(tl.permute(b_word, (2, 0, 1)), (16, 8))
    return halves(b_word)


@triton.jit
def code_one(BITS: tl.constexpr, FIELD: tl.constexpr, ROWS: tl.constexpr):
    """An A operand ``[ROWS, 16]`` with the code 1 in a field everywhere."""
    return tl.full((ROWS, 16), 2.0 ** (field_at(BITS, FIELD) - 24), tl.float16)


@triton.jit
def load_planes(p_words, BITS: tl.constexpr, COLS: tl.constexpr):
    """``BITS`` planes of words, each ``[COLS / 8, 8 lane pairs, 8]`` in memory, as tensors ``[COLS, 8]``.

    Row ``(tile, i, c)`` of 16, 2, 8 is column ``(tile, c, i)``: a thread's rows c and c + 8 are neighbours in memory,
    and the four lane pairs that a quarter of a warp reads lie in different banks.
    """
    word = tl.arange(0, COLS * 8)
    planes = ()
    for j in tl.static_range(BITS):
        b_word = tl.load(p_words + (j * COLS * 8 + word))
        if COLS == 8:
            b_word = tl.trans(tl.reshape(b_word, (8, 8)))
        else:
            b_word = tl.reshape(b_word, (COLS // 16, 2, 8, 4, 2))
            b_word = tl.reshape(tl.permute(b_word, (0, 4, 1, 3, 2)), (COLS, 8))
        planes = planes + (b_word,)
    return planes


@triton.jit
def pair_up(tiles):
    """Tensors ``[...]`` in pairs ``[..., 2]``: half as many."""
    new = ()
    for i in tl.static_range(len(tiles) // 2):
        new = new + (tl.join(tiles[2 * i], tiles[2 * i + 1]),)
    return new


@triton.jit
def stack(tiles):
    """1, 2, 4, 8 or 16 tensors ``[R, C]`` under one another, ``[count * R, C]``. Registers are only renamed."""
    COUNT: tl.constexpr = len(tiles)
    ROWS: tl.constexpr = tiles[0].shape[0]
    COLS: tl.constexpr = tiles[0].shape[1]
    if COUNT == 1:
        return tiles[0]
    elif COUNT == 2:
        b_all = tl.permute(pair_up(tiles)[0], (2, 0, 1))
    elif COUNT == 4:
        b_all = tl.permute(pair_up(pair_up(tiles))[0], (3, 2, 0, 1))
    elif COUNT == 8:
        b_all = tl.permute(pair_up(pair_up(pair_up(tiles)))[0], (4, 3, 2, 0, 1))
    else:
        b_all = tl.permute(pair_up(pair_up(pair_up(pair_up(tiles))))[0], (5, 4, 3, 2, 0, 1))
    return tl.reshape(b_all, (COUNT * ROWS, COLS))


@triton.jit
def row_order(b_x, COLS: tl.constexpr):
    """A vector over the columns of planes (tokens or channels, any number of them) in the order of stacked row tiles.

    ``COLS`` is that of :func:`load_planes`. With 8 columns a tile joins the columns of two fields, half the vector
    apart; otherwise a thread's rows c and c + 8 are neighbours in memory.
    """
    SIZE: tl.constexpr = b_x.shape[0]
    if COLS == 8:
        b_x = tl.permute(tl.reshape(b_x, (2, SIZE // 16, 8)), (1, 0, 2))
    else:
        b_x = tl.permute(tl.reshape(b_x, (SIZE // 16, 8, 2)), (0, 2, 1))
    return tl.reshape(b_x, (SIZE,))


@triton.jit
def key_row_order(b_x, D: tl.constexpr, GROUP: tl.constexpr, LO: tl.constexpr):
    """A vector ``[groups * 32 tokens]`` in the order of a group's row tiles of tokens, then the next group's."""
    GROUPS: tl.constexpr = D // GROUP
    if LO == 4:  # planes of 8 columns
        b_x = tl.permute(tl.reshape(b_x, (GROUPS, 2, 2, 8)), (0, 2, 1, 3))
        return tl.reshape(b_x, (GROUPS * 32,))
    else:
        return row_order(b_x, 2 * LO)


@triton.jit
def load_params(p_scales, SIZE: tl.constexpr, HAS_ZERO: tl.constexpr, PAIRED: tl.constexpr):
    """Scales and zero points ``[SIZE]`` of a block, as they lie; the zero points of pairs are :func:`pair_unit` large.

    The two parts of a pair are float16 numbers where they are, see ``kernels/scale_types.py``; the zero point is a
    subnormal one, in steps. Without zero points the second result means nothing.
    """
    if HAS_ZERO and PAIRED:
        b_word = tl.load(p_scales + tl.arange(0, SIZE))
        b_scale = (b_word & PAIR_SCALE).to(tl.float16, bitcast=True)
        b_zero = (b_word & PAIR_ZERO).to(tl.float16, bitcast=True)
    else:
        b_scale = tl.load(p_scales + tl.arange(0, SIZE))
        b_zero = b_scale
        if HAS_ZERO:
            b_zero = tl.load(p_scales + (SIZE + tl.arange(0, SIZE)))
    return b_scale, b_zero


@triton.constexpr_function
def pair_unit(bits, paired):
    """What the zero points of :func:`load_params` are multiplied by: those of pairs are steps that were read
    as float16."""
    return zero_step(bits) / SUBNORMAL if paired else 1.0


@triton.jit
def with_params(b_sum, b_weight, b_scale, b_zero, HAS_ZERO: tl.constexpr, PAIRED: tl.constexpr):
    """``b_sum`` of codes, ``[R, C]``, in numbers; ``b_weight`` is what the codes were weighed with, summed up.

    ``b_scale`` and ``b_zero`` belong to the rows. The zero points of pairs are in scales; their :func:`pair_unit` is
    in ``b_weight``.
    """
    if HAS_ZERO and PAIRED:
        b_sum += b_weight * b_zero.to(tl.float32)[:, None]
    b_sum *= b_scale.to(tl.float32)[:, None]
    if HAS_ZERO and not PAIRED:
        b_sum += b_weight * b_zero.to(tl.float32)[:, None]
    return b_sum


@triton.jit
def key_scores(
    planes,
    b_scale,
    b_zero,
    query,
    start,
    b_query_sum,
    D: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    LO: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """Products ``K Q^T`` of a block of 32 tokens, ``[32, HEADS]`` in the order of stacked row tiles, 2^24 too small.

    ``query`` holds the slices ``[16, HEADS]`` by ``field % max(LO, 8)``, ``start`` what the sum of each group starts
    from, ``b_query_sum [groups * 32, HEADS]`` the sum of the query over each group, for zero points.
    """
    COLS: tl.constexpr = 2 * LO
    TILES: tl.constexpr = 32 // (COLS if COLS > 16 else 16)
    GROUPS: tl.constexpr = D // GROUP
    HEADS: tl.constexpr = start[0].shape[1]
    sums = ()
    for group in tl.static_range(GROUPS):
        for tile in tl.static_range(TILES):
            b_acc = start[group]
            for s in tl.static_range(GROUP // 16):
                b_codes = field_operand(planes, tile * LO + group * (GROUP // 16) + s, 8, BITS)
                b_acc = tl.dot(b_codes, query[(tile * LO + group * (GROUP // 16) + s) % len(query)], b_acc)
            sums = sums + (b_acc,)
    b_acc = with_params(stack(sums), b_query_sum, b_scale, b_zero, HAS_ZERO, PAIRED)
    return tl.sum(tl.reshape(b_acc, (GROUPS, 32, HEADS)), 0)


@triton.jit
def key_positions(LO: tl.constexpr):
    """Token of each row of :func:`key_scores` in its block, ``[32]``."""
    row = tl.arange(0, 32)
    if LO == 4:  # rows (tile, half, c)
        return row // 8 % 2 * 16 + row // 16 * 8 + row % 8
    else:  # rows (16 tokens, i, c)
        return row // 16 * 16 + row % 8 * 2 + row // 8 % 2


@triton.jit
def token_slices(b_p, LO: tl.constexpr):
    """Rows ``[32, HEADS]`` of a block as two slices ``[16 tokens, HEADS]``, tokens in their own order."""
    HEADS: tl.constexpr = b_p.shape[1]
    if LO == 4:  # rows (tile, slice, c)
        b_all = tl.permute(tl.reshape(b_p, (2, 2, 8, HEADS)), (0, 2, 3, 1))
    else:  # rows (slice, i, c)
        b_all = tl.permute(tl.reshape(b_p, (2, 2, 8, HEADS)), (2, 1, 3, 0))
    return tl.split(tl.reshape(b_all, (16, HEADS, 2)))


@triton.jit
def add_values(
    b_out,
    planes,
    b_scale,
    b_zero,
    b_sum,
    slices,
    D: tl.constexpr,
    BITS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """``out + V^T P^T`` of a block, ``[D, HEADS]`` in the order of stacked row tiles, see :func:`channel_units`.

    ``b_sum [R, HEADS]`` is the sum of the probabilities, the same in every row of a tile.
    """
    tiles, weights = (), ()
    for i in tl.static_range(4 if D == 64 else 8):
        if HAS_ZERO:
            weights = weights + (b_sum * channel_units(i, D, BITS, pair_unit(BITS, PAIRED))[:, None],)
            b_acc = tl.zeros_like(b_sum)
        else:
            b_acc = b_sum * channel_units(i, D, BITS, -(2.0 ** (BITS - 1)))[:, None]
        b_acc = tl.dot(field_operand(planes, i, 4, BITS), slices[0], b_acc)
        b_acc = tl.dot(field_operand(planes, i + 8, 4, BITS), slices[1], b_acc)
        tiles = tiles + (b_acc,)
    b_weight = b_out
    if HAS_ZERO:
        b_weight = stack(weights)
    return b_out + with_params(stack(tiles), b_weight, b_scale, b_zero, HAS_ZERO, PAIRED)


@triton.jit
def channel_units(TILE: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr, CODE: tl.constexpr = 1.0):
    """What a code ``CODE`` is worth in each row ``[R]`` of a row tile of channels: ``CODE 2^(at - 24)``."""
    COLS: tl.constexpr = D // 8
    FIRST: tl.constexpr = CODE * 2.0 ** (field_at(BITS, TILE) - 24)
    if COLS == 8:
        return tl.where(tl.arange(0, 16) < 8, FIRST, CODE * 2.0 ** (field_at(BITS, TILE + 4) - 24))
    else:
        return tl.full((COLS,), FIRST, tl.float32)


@triton.jit
def dot_elements(b_x, b_y, b_acc):
    """``b_acc + b_x b_y`` of float16 or bfloat16 operands; the interpreter takes bfloat16 for integers."""
    if INTERPRETED:
        return tl.dot(b_x.to(tl.float32), b_y.to(tl.float32), b_acc)
    else:
        return tl.dot(b_x, b_y, b_acc)


@triton.jit
def window_partial(
    p_query,
    query_mask,
    k_window,
    v_window,
    mask,
    b,
    h,
    row,
    first,
    last,
    q_end,
    length,
    start,
    N,
    G,
    mask_tokens,
    mask_stride_b,
    mask_stride_h,
    mask_stride_n,
    mask_stride_s,
    query_stride_d,
    scale,
    softcap,
    CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK: tl.constexpr,
    HEADS: tl.constexpr,
    SINK: tl.constexpr,
    RING: tl.constexpr,
    D: tl.constexpr,
    V_D: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Attention to tokens ``[first, last)`` of the windows, counted over the sinks and then the recent ones.

    Returns ``out [V_D, HEADS]``, the base ``[HEADS]`` and the sum ``[HEADS]``. ``p_query`` are pointers ``[1, HEADS]``.
    """
    DTYPE: tl.constexpr = k_window.dtype.element_ty
    channel = tl.arange(0, D)
    v_channel = tl.arange(0, V_D)
    b_q = tl.load(p_query + (channel * query_stride_d)[:, None], mask=query_mask, other=0.0).to(DTYPE)
    b_out = tl.zeros((V_D, HEADS), tl.float32)
    b_base = tl.full((HEADS,), LOWEST, tl.float32)
    b_sum = tl.zeros((HEADS,), tl.float32)
    for t in tl.range(first, last, TOKENS, num_stages=1):
        token = t + tl.arange(0, TOKENS)
        held = token < last
        position = tl.where(token < SINK, token, q_end + token - SINK)
        slot = tl.where(token < SINK, token, SINK + tl.maximum(position - SINK, 0) % RING)
        b_k = tl.load(k_window + slot[:, None] * D + channel[None, :], mask=held[:, None], other=0.0)
        b_v = tl.load(v_window + slot[:, None] * V_D + v_channel[None, :], mask=held[:, None], other=0.0)
        b_s = dot_elements(b_k, b_q, tl.zeros((TOKENS, HEADS), tl.float32))
        b_s = row_scores(
            b_s, tl.where(held, position, length)[:, None], row[None, :], length, length, start, mask, b, h, N, G,
            mask_tokens, mask_stride_b, mask_stride_h, mask_stride_n, mask_stride_s, scale, softcap,
            CAUSAL, SOFTCAP, MASK,
        )  # fmt: skip
        b_new = tl.maximum(b_base, tl.max(b_s, 0))
        b_shrink = tl.exp2(b_base - b_new)
        b_p = round_to(tl.exp2(b_s - b_new[None, :]), DTYPE)
        b_sum = b_sum * b_shrink + tl.sum(b_p.to(tl.float32), 0)
        b_out = dot_elements(tl.trans(b_v), b_p, b_out * b_shrink[None, :])
        b_base = b_new
    return b_out, b_base, b_sum


#: Arguments whose values say nothing about the code: without this every capacity would be compiled anew.
UNSPECIALIZED = (
    *("H", "G", "N", "k_capacity", "v_capacity", "mask_tokens"),
    *(f"query_stride_{x}" for x in "bhnd"),
    *(f"mask_stride_{x}" for x in "bhns"),
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def decode_partial_fields_kernel(
    query,
    k_codes,
    k_scales,
    k_window,
    k_state,
    v_codes,
    v_scales,
    v_window,
    v_state,
    mask,
    open_from,
    part_out,
    part_max,
    part_sum,
    H,
    G,
    N,
    k_capacity,
    v_capacity,
    query_stride_b,
    query_stride_h,
    query_stride_n,
    query_stride_d,
    mask_tokens,
    mask_stride_b,
    mask_stride_h,
    mask_stride_n,
    mask_stride_s,
    scale,
    softcap,
    CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK: tl.constexpr,
    OPEN: tl.constexpr,
    HEADS: tl.constexpr,
    WINDOW_SPLITS: tl.constexpr,
    WINDOW_TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    K_BITS: tl.constexpr,
    K_GROUP: tl.constexpr,
    K_ZERO: tl.constexpr,
    K_D: tl.constexpr,
    K_SLICES: tl.constexpr,
    K_WINDOW: tl.constexpr,
    V_BITS: tl.constexpr,
    V_ZERO: tl.constexpr,
    V_D: tl.constexpr,
):
    """Attention of one tile of query rows to one share of the tokens of a sequence.

    Program (b * H + h, row tile, split). The first ``WINDOW_SPLITS`` splits share the high-precision windows, the
    others the quantized blocks, evenly. What is written is that of ``decode_partial_portable_kernel``. ``BLOCKS`` of
    32 tokens make one step of the softmax. With ``OPEN``, ``open_from [B]`` says from which position on the mask hides
    nothing (``kernels/masks.py``): the blocks from there on have a loop of their own, in which there is no mask.
    """
    bh = tl.program_id(0).to(tl.int64)
    tile, split, splits = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    b, h = bh // H, bh % H
    start = tl.load(k_state + bh * 4)
    length = tl.load(k_state + bh * 4 + 1)
    q_end = quantized_end(k_state + bh * 4, SINK, RECENT, 32)
    row = tile * HEADS + tl.arange(0, HEADS)
    query_mask = (row < N * G)[None, :]
    p_query = query + b * query_stride_b + (h * G + row // N).to(tl.int64) * query_stride_h
    p_query = (p_query + (row % N).to(tl.int64) * query_stride_n)[None, :]
    at = (split * tl.num_programs(0).to(tl.int64) + bh) * (N * G) + row
    p_out = part_out + (at * V_D)[None, :]
    row_mask = row < N * G

    if split < WINDOW_SPLITS:
        w_tokens = tl.minimum(length, SINK) + tl.maximum(length - q_end, 0)
        w_share = tl.cdiv(tl.cdiv(w_tokens, WINDOW_TOKENS), WINDOW_SPLITS) * WINDOW_TOKENS
        w_out, w_base, w_sum = window_partial(
            p_query, query_mask, k_window + bh * (K_WINDOW * K_D),
            v_window + bh * ((SINK + RECENT + 32) * V_D), mask, b, h, row,
            split * w_share, tl.minimum((split + 1) * w_share, w_tokens), q_end, length, start, N, G,
            mask_tokens, mask_stride_b, mask_stride_h, mask_stride_n, mask_stride_s, query_stride_d, scale, softcap,
            CAUSAL, SOFTCAP, MASK, HEADS, SINK, RECENT + 32, K_D, V_D, WINDOW_TOKENS,
        )  # fmt: skip
        tl.store(part_max + at, tl.where(w_sum == 0.0, float("-inf"), w_base), mask=row_mask)
        tl.store(part_sum + at, w_sum, mask=row_mask)
        tl.store(p_out + tl.arange(0, V_D)[:, None], w_out, mask=row_mask[None, :])
    else:
        PLAIN: tl.constexpr = not (CAUSAL or SOFTCAP or MASK > 0)
        K_WORDS: tl.constexpr = K_D * K_BITS
        V_WORDS: tl.constexpr = V_D * V_BITS
        K_SCALES: tl.constexpr = 32 * K_D // K_GROUP
        K_PAIRED: tl.constexpr = is_paired(k_scales.dtype.element_ty)
        V_PAIRED: tl.constexpr = is_paired(v_scales.dtype.element_ty)
        K_PARAMS: tl.constexpr = K_SCALES * 2 if K_ZERO and not K_PAIRED else K_SCALES
        V_PARAMS: tl.constexpr = V_D * 2 if V_ZERO and not V_PAIRED else V_D
        V_ROWS: tl.constexpr = V_D // 8 if V_D > 128 else 16

        # the query, each row scaled by a power of two, in slices divided by what the bits of their fields are worth
        lane = tl.arange(0, 16)
        b_largest = tl.zeros((16, HEADS), tl.float32)
        raw = ()
        for s in tl.static_range(K_D // 16):
            p_slice = p_query + ((s * 16 + lane) * query_stride_d)[:, None]
            b_slice = tl.load(p_slice, mask=query_mask, other=0.0).to(tl.float32)
            b_largest = tl.maximum(b_largest, tl.abs(b_slice))
            raw = raw + (b_slice,)
        exponent = tl.max(b_largest, 0).to(tl.int32, bitcast=True) >> 23
        exponent = tl.maximum(exponent, 15)  # rows of zeros and of numbers below 2^-112
        b_scale = ((268 - exponent) << 23).to(tl.float32, bitcast=True)  # 2^14 / 2^floor(log2(most))
        b_unit = ((exponent - 14) << 23).to(tl.float32, bitcast=True) * 2.0**24
        slices = ()
        for i in tl.static_range(K_SLICES if K_SLICES > 8 else 8):
            slices = slices + ((raw[i % K_SLICES] * (b_scale * 2.0 ** -field_at(K_BITS, i))[None, :]).to(tl.float16),)
        starts = ()
        sums = ()
        K_ROWS: tl.constexpr = 2 * K_SLICES if K_SLICES > 8 else 16
        for group in tl.static_range(K_D // K_GROUP):
            b_total = tl.zeros((K_ROWS, HEADS), tl.float32)
            for s in tl.static_range(K_GROUP // 16):
                b_one = code_one(K_BITS, group * (K_GROUP // 16) + s, K_ROWS)
                b_total = tl.dot(b_one, slices[group * (K_GROUP // 16) + s], b_total)
            for _ in tl.static_range(32 // K_ROWS):
                sums = sums + (b_total * pair_unit(K_BITS, K_PAIRED),)
            if K_ZERO:
                starts = starts + (tl.zeros((K_ROWS, HEADS), tl.float32),)
            else:
                starts = starts + (b_total * -(2.0 ** (K_BITS - 1)),)
        b_query_sum = stack(sums)
        token = key_positions(K_SLICES)

        b_out = tl.zeros((V_D, HEADS), tl.float32)
        b_sum = tl.zeros((V_ROWS, HEADS), tl.float32)
        b_base = tl.full((HEADS,), LOWEST, tl.float32)
        b_ones = tl.full((V_ROWS, 16), 1.0, tl.float16)

        blocks = (q_end - SINK) // 32
        share = tl.cdiv(blocks, splits - WINDOW_SPLITS)
        first = (split - WINDOW_SPLITS) * share
        last = tl.minimum(first + share, blocks)
        k_codes += bh * k_capacity * K_WORDS
        v_codes += bh * v_capacity * V_WORDS
        k_scales += bh * k_capacity * K_PARAMS
        v_scales += bh * v_capacity * V_PARAMS
        opened = last
        if OPEN:
            if q_end <= length - N + 1:  # else the causal part of the mask reaches into the blocks
                opened = tl.cdiv(tl.maximum(tl.load(open_from + b) - start - SINK, 0), 32)
                opened = tl.minimum(tl.maximum(opened, first), last)
        for phase in tl.static_range(2 if OPEN else 1):
            if phase == 1:
                begin, end = opened, last
            else:
                begin, end = first, opened
            if PLAIN or (phase == 1 and not SOFTCAP):  # from products straight to exponents, one FFMA
                b_factor = b_unit * (scale * LOG2E)
            else:
                b_factor = tl.full((HEADS,), 1.0, tl.float32)
            for block0 in tl.range(begin, end, BLOCKS, num_stages=STAGES):
                logits = ()
                for i in tl.static_range(BLOCKS):
                    block = tl.minimum(block0 + i, end - 1).to(tl.int64)
                    planes = load_planes(k_codes + block * K_WORDS, K_BITS, 2 * K_SLICES)
                    b_k_scale, b_k_zero = load_params(k_scales + block * K_PARAMS, K_SCALES, K_ZERO, K_PAIRED)
                    b_k_scale = key_row_order(b_k_scale, K_D, K_GROUP, K_SLICES)
                    b_k_zero = key_row_order(b_k_zero, K_D, K_GROUP, K_SLICES)
                    b_s = key_scores(
                        planes, b_k_scale, b_k_zero, slices, starts, b_query_sum,
                        K_D, K_BITS, K_GROUP, K_SLICES, K_ZERO, K_PAIRED,
                    )  # fmt: skip
                    if not (PLAIN or (phase == 1 and not SOFTCAP)):
                        b_s *= b_unit[None, :]
                        position = SINK + (block0 + i) * 32 + token
                        b_s = row_scores(
                            b_s, position[:, None], row[None, :], length, length, start, mask, b, h, N, G,
                            mask_tokens, mask_stride_b, mask_stride_h, mask_stride_n, mask_stride_s, scale, softcap,
                            CAUSAL and phase == 0, SOFTCAP, MASK * (1 - phase),
                        )  # fmt: skip
                    if i > 0:
                        b_s = tl.where(block0 + i < end, b_s, float("-inf"))
                    logits = logits + (b_s,)
                # as integers, floats compare as they do if one of them is positive: one REDUX looks at all exponents
                exponents = ()
                for i in tl.static_range(BLOCKS):
                    b_e = logits[i] * b_factor[None, :] - b_base[None, :]
                    b_bits = b_e.to(tl.int32, bitcast=True)
                    if i == 0:
                        b_most = b_bits
                    else:
                        b_most = tl.maximum(b_most, b_bits)
                    exponents = exponents + (b_e,)
                if tl.max(tl.ravel(b_most), 0) > OUTGROWN:
                    b_top = logits[0]
                    for i in tl.static_range(1, BLOCKS):
                        b_top = tl.maximum(b_top, logits[i])
                    b_new = tl.maximum(b_base, tl.max(b_top * b_factor[None, :], 0) - START)
                    b_shrink = tl.exp2(b_base - b_new)
                    b_base = b_new
                    b_sum = b_sum * b_shrink[None, :]
                    b_out = b_out * b_shrink[None, :]
                    again = ()
                    for i in tl.static_range(BLOCKS):
                        again = again + (logits[i] * b_factor[None, :] - b_base[None, :],)
                    exponents = again
                for i in tl.static_range(BLOCKS):
                    block = tl.minimum(block0 + i, end - 1).to(tl.int64)
                    p_slices = token_slices(tl.exp2(exponents[i]).to(tl.float16), K_SLICES)
                    b_total = tl.dot(b_ones, p_slices[0], tl.zeros_like(b_sum))
                    b_total = tl.dot(b_ones, p_slices[1], b_total)
                    b_sum += b_total
                    planes = load_planes(v_codes + block * V_WORDS, V_BITS, V_D // 8)
                    b_v_scale, b_v_zero = load_params(v_scales + block * V_PARAMS, V_D, V_ZERO, V_PAIRED)
                    b_v_scale = row_order(b_v_scale, V_D // 8)
                    b_v_zero = row_order(b_v_zero, V_D // 8)
                    b_out = add_values(
                        b_out, planes, b_v_scale, b_v_zero, b_total, p_slices, V_D, V_BITS, V_ZERO, V_PAIRED
                    )

        b_sum = tl.max(b_sum, 0)
        tl.store(part_max + at, tl.where(b_sum == 0.0, float("-inf"), b_base), mask=row_mask)
        tl.store(part_sum + at, b_sum, mask=row_mask)
        units = ()
        for i in tl.static_range(4 if V_D == 64 else 8):
            units = units + (tl.broadcast_to((1.0 / channel_units(i, V_D, V_BITS))[:, None], (V_ROWS, HEADS)),)
        b_out = b_out * stack(units)
        r = tl.arange(0, V_D)
        if V_D == 64:  # rows (tile, half, c)
            channel = r // 8 % 2 * 32 + r // 16 * 8 + r % 8
        else:  # rows (16 channels, i, c)
            channel = r // 16 * 16 + r % 8 * 2 + r // 8 % 2
        tl.store(p_out + channel[:, None], b_out, mask=row_mask[None, :])
