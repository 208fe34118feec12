"""Decode attention for every format: the partial kernel that dequantizes tiles of tokens.

Slower than ``attention_fields``, and without its restrictions: it supports all bits, modes, group sizes, block sizes,
head_dims and windows, and keys and values may differ in all of these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import quantized_end, shift, tile_channels, value_head
from .attention_scores import row_scores
from .constants import STATE_LENGTH, STATE_SIZE
from .unpack import load_tokens
from .unpack_block import load_block

#: Numbers that depend on the lengths of caches and of masks: the kernel is compiled once for all of them.
UNSPECIALIZED = (
    *("k_capacity", "v_capacity", "dropped", "v_first", "v_heads"),
    *("mask_tokens", "mask_stride_b", "mask_stride_h", "mask_stride_n"),
)


@triton.jit
def _load_tile(
    codes,
    scales,
    window,
    bh,
    capacity,
    t0,
    shown,
    length,
    q_end,
    BY_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    IS_KEY: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
):
    """The tokens from ``t0`` on of a cache side, ``[TOKENS, COLS]`` float32; zeros for those that are not seen.

    With ``BY_BLOCK`` they are a block, or all in the windows.
    """
    position = t0 + tl.arange(0, TOKENS)
    held = (position >= shown) & (position < length)
    if BY_BLOCK:
        if (t0 >= SINK) & (t0 < q_end):
            at = bh * capacity + (t0 - SINK) // BLOCK
            b_x = load_block(codes, scales, at, IS_KEY, HAS_ZERO, BITS, GROUP, D, SLICES, COLS)
            b_x = tl.where(held[:, None], b_x, 0.0)
        else:
            b_x = load_tokens(
                codes, scales, window, bh, capacity, position, held, q_end, False, True,
                IS_KEY, HAS_ZERO, BITS, GROUP, BLOCK, SINK, RECENT, D, SLICES, COLS,
            )  # fmt: skip
        return b_x
    else:
        return load_tokens(
            codes, scales, window, bh, capacity, position, held, q_end,
            (t0 + TOKENS > SINK) & (t0 < q_end), (t0 < SINK) | (t0 + TOKENS > q_end),
            IS_KEY, HAS_ZERO, BITS, GROUP, BLOCK, SINK, RECENT, D, SLICES, COLS,
        )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def decode_partial_portable_kernel(
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
    value_query,
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
    value_query_stride_b,
    value_query_stride_h,
    value_query_stride_n,
    value_query_stride_d,
    scale,
    softcap,
    CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK: tl.constexpr,
    VALUE_QUERY: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BY_BLOCK: tl.constexpr,
    K_IS_KEY: tl.constexpr,
    K_HAS_ZERO: tl.constexpr,
    K_BITS: tl.constexpr,
    K_GROUP: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_SINK: tl.constexpr,
    K_RECENT: tl.constexpr,
    K_D: tl.constexpr,
    K_SLICES: tl.constexpr,
    K_COLS: tl.constexpr,
    V_IS_KEY: tl.constexpr,
    V_HAS_ZERO: tl.constexpr,
    V_BITS: tl.constexpr,
    V_GROUP: tl.constexpr,
    V_BLOCK: tl.constexpr,
    V_SINK: tl.constexpr,
    V_RECENT: tl.constexpr,
    V_D: tl.constexpr,
    V_SLICES: tl.constexpr,
    V_COLS: tl.constexpr,
):
    """Attention of one tile of query rows to one share of the tokens of a sequence.

    Program (b * H + h, row tile, split). Splits have equal shares of the tiles of ``TOKENS`` tokens that the program's
    tensor has: they depend neither on the capacity nor on how many tokens are hidden. ``dropped`` is that of
    ``AttentionCall``. With s the scores in units of log2, it writes for each of its rows

        max = max_t s_t,   sum = sum_t 2^(s_t - max),   out = sum_t 2^(s_t - max) v_t   (float32, not divided)

    and ``-inf, 0, 0`` for a row that sees no token of this share. With ``VALUE_QUERY`` the products of ``value_query``
    and the values are added to those of query and keys, of the same tile of values as is summed.
    """
    bh = tl.program_id(0).to(tl.int64)
    tile, split, splits = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    b, h = bh // H, bh % H
    v_bh = value_head(b, h, H, v_first, v_heads)
    place = (shift(k_state + bh * STATE_SIZE) + dropped).to(tl.int32)  # of the first token, in the program's tensor
    shown = tl.maximum(-place, 0)  # the first token that it has
    length = tl.load(k_state + bh * STATE_SIZE + STATE_LENGTH)
    k_end = quantized_end(k_state + bh * STATE_SIZE, K_SINK, K_RECENT, K_BLOCK)
    v_end = quantized_end(v_state + v_bh * STATE_SIZE, V_SINK, V_RECENT, V_BLOCK)

    row = tile * ROWS + tl.arange(0, ROWS)
    channel, real = tile_channels(K_IS_KEY, K_SLICES, K_D, K_COLS)
    p_q = query + b * query_stride_b + (h * G + row // N).to(tl.int64)[:, None] * query_stride_h
    p_q += (row % N).to(tl.int64)[:, None] * query_stride_n + (channel * query_stride_d)[None, :]
    b_q = tl.load(p_q, mask=(row < N * G)[:, None] & real[None, :], other=0.0).to(tl.float32)

    if VALUE_QUERY:
        channel, real = tile_channels(V_IS_KEY, V_SLICES, V_D, V_COLS)
        p_q = value_query + b * value_query_stride_b + (h * G + row // N).to(tl.int64)[:, None] * value_query_stride_h
        p_q += (row % N).to(tl.int64)[:, None] * value_query_stride_n + (channel * value_query_stride_d)[None, :]
        b_vq = tl.load(p_q, mask=(row < N * G)[:, None] & real[None, :], other=0.0).to(tl.float32)

    b_max = tl.full((ROWS,), float("-inf"), tl.float32)
    b_sum = tl.zeros((ROWS,), tl.float32)
    b_out = tl.zeros((ROWS, V_COLS), tl.float32)
    # tiles are counted: the compiler then knows that they begin at multiples of TOKENS, and needs fewer instructions
    tiles = tl.cdiv(length, TOKENS)
    first = tl.minimum(shown // TOKENS, tiles)
    share = tl.cdiv(tiles - first, splits)
    first += split * share
    for i in range(first, tl.minimum(first + share, tiles)):
        t0 = i * TOKENS
        b_k = _load_tile(
            k_codes, k_scales, k_window, bh, k_capacity, t0, shown, length, k_end, BY_BLOCK, TOKENS,
            K_IS_KEY, K_HAS_ZERO, K_BITS, K_GROUP, K_BLOCK, K_SINK, K_RECENT, K_D, K_SLICES, K_COLS,
        )  # fmt: skip
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        if VALUE_QUERY:
            b_v = _load_tile(
                v_codes, v_scales, v_window, v_bh, v_capacity, t0, shown, length, v_end, BY_BLOCK, TOKENS,
                V_IS_KEY, V_HAS_ZERO, V_BITS, V_GROUP, V_BLOCK, V_SINK, V_RECENT, V_D, V_SLICES, V_COLS,
            )  # fmt: skip
            b_s += tl.dot(b_vq, tl.trans(b_v), input_precision=PRECISION)
        position = t0 + tl.arange(0, TOKENS)
        held = (position >= shown) & (position < length)
        b_s = row_scores(
            b_s, tl.where(held, position, length)[None, :], row[:, None], length, length, place, mask, b, h, N, G,
            mask_tokens, mask_stride_b, mask_stride_h, mask_stride_n, mask_stride_s, scale, softcap,
            CAUSAL, SOFTCAP, MASK,
        )  # fmt: skip
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)  # no token seen yet: 2^(-inf - 0) = 0
        b_p = tl.exp2(b_s - b_base[:, None])
        b_shrink = tl.exp2(b_max - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        if not VALUE_QUERY:  # late, so that the tiles of keys and values are not held at the same time
            b_v = _load_tile(
                v_codes, v_scales, v_window, v_bh, v_capacity, t0, shown, length, v_end, BY_BLOCK, TOKENS,
                V_IS_KEY, V_HAS_ZERO, V_BITS, V_GROUP, V_BLOCK, V_SINK, V_RECENT, V_D, V_SLICES, V_COLS,
            )  # fmt: skip
        b_out = b_out * b_shrink[:, None] + tl.dot(b_p, b_v, input_precision=PRECISION)
        b_max = b_new

    at = (split * tl.num_programs(0).to(tl.int64) + bh) * (N * G) + row
    tl.store(part_max + at, b_max, mask=row < N * G)
    tl.store(part_sum + at, b_sum, mask=row < N * G)
    channel, real = tile_channels(V_IS_KEY, V_SLICES, V_D, V_COLS)
    tl.store(part_out + at[:, None] * V_D + channel[None, :], b_out, mask=(row < N * G)[:, None] & real[None, :])
