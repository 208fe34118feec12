"""The fast partial kernel of decode attention: which program takes which tokens, and its loop over blocks."""

# ruff: noqa: RUF005, SIM102
# Triton has no starred expressions in tuples, a ternary there is an operator on tensors, and so is `and`.
from __future__ import annotations

import triton
import triton.language as tl

from ..addresses import quantized_end, shift, value_head
from ..attention_scores import row_scores
from ..constants import (
    BLOCK_TOKENS,
    LOG2E,
    STATE_LENGTH,
    STATE_SIZE,
    block_groups,
    block_words,
    is_paired,
    next_power_of_2,
    params_per_group,
    plane_columns,
    ring_slots,
    window_slots,
)
from .keys import group_sums, key_scores, query_slices
from .operands import load_planes
from .rows import (
    key_row_order,
    padded_columns,
    row_channels,
    row_order,
    row_tokens,
    tile_rows,
    token_slices,
    value_rows,
)
from .scales import load_params
from .softmax import LOWEST, OUTGROWN, exponents_of, from_position, raised_base
from .values import add_values, from_channel_units
from .windows import window_partial

#: Arguments whose values say nothing about the code: without this every capacity would be compiled anew.
UNSPECIALIZED = (
    *("H", "G", "N", "k_capacity", "v_capacity", "v_first", "v_heads", "dropped", "mask_tokens"),
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
    v_first,
    v_heads,
    dropped,
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
    V_BITS: tl.constexpr,
    V_ZERO: tl.constexpr,
    V_D: tl.constexpr,
    V_SLICES: tl.constexpr,
):
    """Attention of one tile of query rows to one share of the tokens of a sequence.

    Program (b * H + h, row tile, split). The first ``WINDOW_SPLITS`` splits share the high-precision windows, the
    others the quantized blocks, evenly. What is written is that of ``decode_partial_portable_kernel``. ``BLOCKS`` of
    32 tokens make one step of the softmax. With ``OPEN``, ``open_from [B]`` says from which position on the mask hides
    nothing (``kernels/masks.py``): the blocks from there on have a loop of their own, in which there is no mask.

    Tokens that the program's tensor does not have, all those in front of ``shown``, are left out of the shares but for
    those of the block that has ``shown``. ``dropped`` is that of ``AttentionCall``.
    """
    bh = tl.program_id(0).to(tl.int64)
    tile, split, splits = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    b, h = bh // H, bh % H
    v_bh = value_head(b, h, H, v_first, v_heads)
    place = (shift(k_state + bh * STATE_SIZE) + dropped).to(tl.int32)  # of the first token, in the program's tensor
    shown = tl.maximum(-place, 0)
    length = tl.load(k_state + bh * STATE_SIZE + STATE_LENGTH)
    q_end = quantized_end(k_state + bh * STATE_SIZE, SINK, RECENT, BLOCK_TOKENS)
    row = tile * HEADS + tl.arange(0, HEADS)
    query_mask = (row < N * G)[None, :]
    p_query = query + b * query_stride_b + (h * G + row // N).to(tl.int64) * query_stride_h
    p_query = (p_query + (row % N).to(tl.int64) * query_stride_n)[None, :]
    at = (split * tl.num_programs(0).to(tl.int64) + bh) * (N * G) + row
    p_out = part_out + (at * V_D)[None, :]
    row_mask = row < N * G

    if split < WINDOW_SPLITS:
        w_tokens = tl.minimum(length, SINK) + tl.maximum(length - q_end, 0)
        w_first = tl.minimum(tl.minimum(shown, SINK) + tl.maximum(shown - q_end, 0), w_tokens)
        w_share = tl.cdiv(tl.cdiv(w_tokens - w_first, WINDOW_TOKENS), WINDOW_SPLITS) * WINDOW_TOKENS
        w_first += split * w_share
        w_out, w_base, w_sum = window_partial(
            p_query, query_mask, k_window + bh * (window_slots(SINK, RECENT, BLOCK_TOKENS) * K_D),
            v_window + v_bh * (window_slots(SINK, RECENT, BLOCK_TOKENS) * V_D), mask, b, h, row,
            w_first, tl.minimum(w_first + w_share, w_tokens), q_end, length, place, N, G,
            mask_tokens, mask_stride_b, mask_stride_h, mask_stride_n, mask_stride_s, query_stride_d, scale, softcap,
            CAUSAL, SOFTCAP, MASK, HEADS, SINK, ring_slots(RECENT, BLOCK_TOKENS), K_D, V_D, WINDOW_TOKENS,
        )  # fmt: skip
        tl.store(part_max + at, tl.where(w_sum == 0.0, float("-inf"), w_base), mask=row_mask)
        tl.store(part_sum + at, w_sum, mask=row_mask)
        w_channel = tl.arange(0, next_power_of_2(V_D))
        tl.store(p_out + w_channel[:, None], w_out, mask=row_mask[None, :] & (w_channel < V_D)[:, None])
    else:
        PLAIN: tl.constexpr = not (CAUSAL or SOFTCAP or MASK > 0)
        K_COLS: tl.constexpr = plane_columns(True, K_SLICES, BLOCK_TOKENS, K_D)
        V_COLS: tl.constexpr = plane_columns(False, V_SLICES, BLOCK_TOKENS, V_D)
        K_WORDS: tl.constexpr = block_words(K_BITS, BLOCK_TOKENS, K_D)
        V_WORDS: tl.constexpr = block_words(V_BITS, BLOCK_TOKENS, V_D)
        K_GROUPS: tl.constexpr = block_groups(K_GROUP, BLOCK_TOKENS, K_D)
        V_GROUPS: tl.constexpr = block_groups(BLOCK_TOKENS, BLOCK_TOKENS, V_D)  # one a channel
        K_PAIRED: tl.constexpr = is_paired(k_scales.dtype.element_ty)
        V_PAIRED: tl.constexpr = is_paired(v_scales.dtype.element_ty)
        K_PARAMS: tl.constexpr = K_GROUPS * params_per_group(K_ZERO, k_scales.dtype.element_ty)
        V_PARAMS: tl.constexpr = V_GROUPS * params_per_group(V_ZERO, v_scales.dtype.element_ty)

        # dead groups make their number a power of two; dead channels fill planes of 8, 16 or 32 columns
        LIVE_GROUPS: tl.constexpr = K_D // K_GROUP
        k_group = tl.arange(0, next_power_of_2(LIVE_GROUPS) * BLOCK_TOKENS)
        k_real = None
        if next_power_of_2(LIVE_GROUPS) != LIVE_GROUPS:
            k_real = k_group < K_GROUPS
        channel, real_channel = row_channels(V_COLS)
        IN_ORDER: tl.constexpr = value_rows(V_COLS) == V_D

        slices, b_unit = query_slices(p_query, query_mask, query_stride_d, K_D, K_BITS, K_SLICES)
        starts, b_query_sum = group_sums(slices, K_D, K_BITS, K_GROUP, K_SLICES, K_COLS, K_ZERO, K_PAIRED)
        token = row_tokens(K_COLS)

        b_out = tl.zeros((value_rows(V_COLS), HEADS), tl.float32)
        b_sum = tl.zeros((tile_rows(V_COLS), HEADS), tl.float32)
        b_base = tl.full((HEADS,), LOWEST, tl.float32)
        b_ones = tl.full((tile_rows(V_COLS), 16), 1.0, tl.float16)

        blocks = (q_end - SINK) // BLOCK_TOKENS
        first = tl.minimum(tl.maximum(shown - SINK, 0) // BLOCK_TOKENS, blocks)
        share = tl.cdiv(blocks - first, splits - WINDOW_SPLITS)
        first += (split - WINDOW_SPLITS) * share
        last = tl.minimum(first + share, blocks)
        k_codes += bh * k_capacity * K_WORDS
        v_codes += v_bh * v_capacity * V_WORDS
        k_scales += bh * k_capacity * K_PARAMS
        v_scales += v_bh * v_capacity * V_PARAMS
        opened = last
        if OPEN:
            if q_end <= length - N + 1:  # else the causal part of the mask reaches into the blocks
                opened = tl.cdiv(tl.maximum(tl.load(open_from + b) - place - SINK, 0), BLOCK_TOKENS)
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
                    planes = load_planes(k_codes + block * K_WORDS, K_BITS, K_COLS, K_COLS, K_D // (16 * K_SLICES))
                    b_k_scale, b_k_zero = load_params(
                        k_scales + block * K_PARAMS, k_group, k_real, K_GROUPS, K_ZERO, K_PAIRED
                    )
                    b_k_scale = key_row_order(b_k_scale, next_power_of_2(LIVE_GROUPS), K_COLS)
                    b_k_zero = key_row_order(b_k_zero, next_power_of_2(LIVE_GROUPS), K_COLS)
                    b_s = key_scores(
                        planes, b_k_scale, b_k_zero, slices, starts, b_query_sum,
                        K_D, K_BITS, K_GROUP, K_SLICES, K_COLS, K_ZERO, K_PAIRED,
                    )  # fmt: skip
                    if not (PLAIN or (phase == 1 and not SOFTCAP)):
                        b_s *= b_unit[None, :]
                        position = SINK + (block0 + i) * BLOCK_TOKENS + token
                        position = tl.where(position >= shown, position, length)  # that of no token
                        b_s = row_scores(
                            b_s, position[:, None], row[None, :], length, length, place, mask, b, h, N, G,
                            mask_tokens, mask_stride_b, mask_stride_h, mask_stride_n, mask_stride_s, scale, softcap,
                            CAUSAL and phase == 0, SOFTCAP, MASK * (1 - phase),
                        )  # fmt: skip
                    if i > 0:
                        b_s = tl.where(block0 + i < end, b_s, float("-inf"))
                    logits = logits + (b_s,)
                exponents, b_most = exponents_of(logits, b_factor, b_base)
                if tl.max(tl.ravel(b_most), 0) > OUTGROWN:
                    # the first step of each share comes here, and only that of the first share has hidden tokens
                    allowed = logits
                    if PLAIN:
                        allowed = from_position(logits, token + (block0 * BLOCK_TOKENS + SINK), shown)
                    b_new = raised_base(b_base, allowed, b_factor)
                    b_shrink = tl.exp2(b_base - b_new)
                    b_base = b_new
                    b_sum = b_sum * b_shrink[None, :]
                    b_out = b_out * b_shrink[None, :]
                    exponents, _ = exponents_of(allowed, b_factor, b_base)
                for i in tl.static_range(BLOCKS):
                    block = tl.minimum(block0 + i, end - 1).to(tl.int64)
                    p_slices = token_slices(tl.exp2(exponents[i]).to(tl.float16), K_COLS)
                    b_total = tl.dot(b_ones, p_slices[0], tl.zeros_like(b_sum))
                    b_total = tl.dot(b_ones, p_slices[1], b_total)
                    b_sum += b_total
                    planes = load_planes(v_codes + block * V_WORDS, V_BITS, V_COLS, padded_columns(V_COLS), 1)
                    if IN_ORDER:
                        b_v_scale, b_v_zero = load_params(
                            v_scales + block * V_PARAMS, tl.arange(0, V_GROUPS), None, V_GROUPS, V_ZERO, V_PAIRED
                        )
                        b_v_scale = row_order(b_v_scale, V_COLS)
                        b_v_zero = row_order(b_v_zero, V_COLS)
                    else:
                        b_v_scale, b_v_zero = load_params(
                            v_scales + block * V_PARAMS, channel, real_channel, V_GROUPS, V_ZERO, V_PAIRED
                        )
                    b_out = add_values(
                        b_out, planes, b_v_scale, b_v_zero, b_total, p_slices,
                        V_BITS, V_SLICES, V_COLS, V_ZERO, V_PAIRED,
                    )  # fmt: skip

        b_sum = tl.max(b_sum, 0)
        tl.store(part_max + at, tl.where(b_sum == 0.0, float("-inf"), b_base), mask=row_mask)
        tl.store(part_sum + at, b_sum, mask=row_mask)
        b_out = from_channel_units(b_out, V_BITS, V_SLICES, V_COLS)
        tl.store(p_out + channel[:, None], b_out, mask=row_mask[None, :] & real_channel[:, None])
