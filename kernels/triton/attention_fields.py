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

from __future__ import annotations

import triton
import triton.language as tl

from .attention_portable import LOG2E, row_scores
from .unpack import quantized_end

#: Exponent of the largest probability when the base is set, and how far scores may then grow: p stays below 2^15.
START = tl.constexpr(6.0)
HEADROOM = tl.constexpr(8.0)
#: Stands for -inf as a base, so that no difference of scores is NaN.
LOWEST = tl.constexpr(-3.0e38)


@triton.constexpr_function
def field_plane(bits, field):
    """Which of the ``bits`` planes of words holds a field (3 bits: field 15 has a bit in each of the three)."""
    return field // (16 // bits)


@triton.constexpr_function
def field_at(bits, field):
    """The bit of a half at which the mask finds a field, after its shift."""
    if bits == 3:
        return (0, 3, 0, 3, 6, 0, 3, 6)[field % 8]
    return field % (16 // bits) * bits % 8


@triton.constexpr_function
def field_shift(bits, field):
    """By how much words are shifted down before the field is masked."""
    return field % (16 // bits) * bits - field_at.fn(bits, field)


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
def operand(planes, FIELD: tl.constexpr, PARTNER: tl.constexpr, BITS: tl.constexpr):
    """The A operand ``[R, 16 lanes]`` of a field. Planes of 8 columns give 8 rows; ``PARTNER`` is then the other 8."""
    b_word = masked_field(planes, FIELD, BITS)
    if b_word.shape[0] == 8:
        b_word = tl.join(b_word, masked_field(planes, PARTNER, BITS))
        b_word = tl.reshape(tl.permute(b_word, (2, 0, 1)), (16, 8))
    return halves(b_word)


@triton.jit
def load_planes(p_words, BITS: tl.constexpr, COLS: tl.constexpr):
    """Words ``[8 lane pairs, BITS, COLS]`` at ``p_words`` as ``BITS`` tensors ``[COLS, 8]``.

    Row ``(tile, i, c)`` of 16, 2, 8 is column ``(tile, c, i)``: a thread's rows c and c + 8 are neighbours in memory.
    """
    pair = tl.arange(0, 8)
    column = tl.arange(0, COLS)
    planes = ()
    for j in tl.static_range(BITS):
        b_word = tl.load(p_words + pair[:, None] * (BITS * COLS) + (j * COLS + column)[None, :])
        if COLS == 8:
            b_word = tl.trans(b_word)
        else:
            b_word = tl.reshape(b_word, (8, COLS // 16, 8, 2))
            b_word = tl.reshape(tl.permute(b_word, (1, 3, 2, 0)), (COLS, 8))
        planes = planes + (b_word,)
    return planes


@triton.jit
def row_order(b_x, COLS: tl.constexpr):
    """A vector over columns in the order of rows, see :func:`load_planes`."""
    if COLS == 8:
        return b_x
    else:
        b_x = tl.reshape(b_x, (COLS // 16, 8, 2))
        return tl.reshape(tl.permute(b_x, (0, 2, 1)), (COLS,))


@triton.jit
def row_index(FIRST: tl.constexpr, STEP: tl.constexpr, COLS: tl.constexpr):
    """What a row stands for, tokens or channels of a block, in the order of memory.

    ``FIRST`` is that of column 0; with 8 columns the second eight rows are ``STEP`` further.
    """
    if COLS == 8:
        row = tl.arange(0, 16)
        return FIRST + row // 8 * STEP + row % 8
    else:
        return FIRST + tl.arange(0, COLS)


@triton.jit
def load_scales(
    p_scales, COUNT: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, PARTNER: tl.constexpr, COLS: tl.constexpr
):
    """Scales of ``COUNT`` row tiles, the i-th beginning ``i * WIDTH`` after ``FIRST``."""
    scales = ()
    for i in tl.static_range(COUNT):
        b_scale = tl.load(p_scales + row_index(FIRST + i * WIDTH, PARTNER, COLS))
        scales = scales + (row_order(b_scale, COLS),)
    return scales


@triton.jit
def load_key_scales(p_scales, D: tl.constexpr, GROUP: tl.constexpr, LO: tl.constexpr):
    """Key scales ``[groups, 32 tokens]`` of a block: for each row tile of tokens, for each group, ``[R]``."""
    COLS: tl.constexpr = 2 * LO
    TILES: tl.constexpr = 32 // (COLS if COLS > 16 else 16)
    scales = ()
    for tile in tl.static_range(TILES):
        scales = scales + load_scales(p_scales, D // GROUP, tile * COLS, 32, 16, COLS)
    return scales


@triton.jit
def load_value_scales(p_scales, D: tl.constexpr):
    """Value scales ``[D]`` of a block: for each row tile of channels ``[R]``."""
    COLS: tl.constexpr = D // 8
    return load_scales(p_scales, 4 if COLS == 8 else 8, 0, COLS, D // 2, COLS)


@triton.jit
def key_scores(planes, scales, query, start, D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, LO: tl.constexpr):
    """Products ``K Q^T`` of a block of 32 tokens, one tensor ``[R, HEADS]`` a row tile, times 2^24 too small.

    ``query`` holds the slices ``[16, HEADS]`` by ``field % max(LO, 8)``, ``start`` what a group's sum starts from.
    """
    COLS: tl.constexpr = 2 * LO
    TILES: tl.constexpr = 32 // (COLS if COLS > 16 else 16)
    GROUPS: tl.constexpr = D // GROUP
    scores = ()
    for tile in tl.static_range(TILES):
        for group in tl.static_range(GROUPS):
            b_acc = start[group]
            for s in tl.static_range(GROUP // 16):
                FIELD: tl.constexpr = tile * LO + group * (GROUP // 16) + s
                b_acc = tl.dot(operand(planes, FIELD, FIELD + 8, BITS), query[FIELD % len(query)], b_acc)
            b_acc *= scales[tile * GROUPS + group].to(tl.float32)[:, None]
            if group == 0:
                b_score = b_acc
            else:
                b_score += b_acc
        scores = scores + (b_score,)
    return scores


@triton.jit
def probability_slices(scores, b_unit, b_base, LO: tl.constexpr, DTYPE: tl.constexpr):
    """``2^(score * unit - base)`` of a block as two slices ``[16 tokens, HEADS]``, tokens in their own order."""
    COLS: tl.constexpr = 2 * LO
    probabilities = ()
    for i in tl.static_range(len(scores)):
        b_p = tl.exp2(scores[i] * b_unit[None, :] - b_base[None, :]).to(DTYPE)
        probabilities = probabilities + (b_p,)
    HEADS: tl.constexpr = scores[0].shape[1]
    if COLS == 16:  # a row tile is a slice
        b_first = tl.reshape(tl.permute(tl.reshape(probabilities[0], (2, 8, HEADS)), (1, 0, 2)), (16, HEADS))
        b_second = tl.reshape(tl.permute(tl.reshape(probabilities[1], (2, 8, HEADS)), (1, 0, 2)), (16, HEADS))
        return b_first, b_second
    elif COLS == 32:  # rows (slice, i, c)
        b_p = tl.permute(tl.reshape(probabilities[0], (2, 2, 8, HEADS)), (2, 1, 3, 0))
        return tl.split(tl.reshape(b_p, (16, HEADS, 2)))
    else:  # tile, rows (slice, c)
        b_p = tl.reshape(tl.join(probabilities[0], probabilities[1]), (2, 8, HEADS, 2))
        return tl.split(tl.reshape(tl.permute(b_p, (3, 1, 2, 0)), (16, HEADS, 2)))


@triton.jit
def add_values(out, planes, scales, zeros, b_sum, slices, D: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr):
    """``out + V^T P^T`` of a block, by row tile of channels ``[R, HEADS]``, 2^(24 - at) times too small."""
    COLS: tl.constexpr = D // 8
    new = ()
    for i in tl.static_range(len(out)):
        if COLS == 8:
            OTHER: tl.constexpr = i + 4
        else:
            OTHER: tl.constexpr = i
        if OFFSET == 0:
            b_acc = tl.zeros_like(out[0])
        elif field_at(BITS, i) == field_at(BITS, OTHER):
            b_acc = b_sum * (-OFFSET * 2.0 ** (field_at(BITS, i) - 24))
        else:
            first = tl.arange(0, 16) < 8
            b_unit = tl.where(first, 2.0 ** field_at(BITS, i), 2.0 ** field_at(BITS, OTHER)) * (-OFFSET * 2.0**-24)
            b_acc = b_sum * b_unit[:, None]
        b_acc = tl.dot(operand(planes, i, OTHER, BITS), slices[0], b_acc)
        b_acc = tl.dot(operand(planes, i + 8, OTHER + 8, BITS), slices[1], b_acc)
        b_out = out[i] + b_acc * scales[i].to(tl.float32)[:, None]
        new = new + (b_out,)
    return new
