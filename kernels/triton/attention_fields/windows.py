"""Attention to the tokens that are held in full precision: the sinks and the recent window."""

from __future__ import annotations

import triton
import triton.language as tl

from ..addresses import ring_slot
from ..attention_scores import row_scores
from ..casts import INTERPRETED, round_to
from ..constants import next_power_of_2
from .softmax import LOWEST


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
    place,
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

    Returns ``out [next_power_of_2(V_D), HEADS]``, the base ``[HEADS]`` and the sum ``[HEADS]``. ``p_query`` are
    pointers ``[1, HEADS]``; ``place`` is where the program's tensor has the token at position 0.
    """
    DTYPE: tl.constexpr = k_window.dtype.element_ty
    channel = tl.arange(0, next_power_of_2(D))
    v_channel = tl.arange(0, next_power_of_2(V_D))
    b_q = tl.load(
        p_query + (channel * query_stride_d)[:, None], mask=query_mask & (channel < D)[:, None], other=0.0
    ).to(DTYPE)
    b_out = tl.zeros((next_power_of_2(V_D), HEADS), tl.float32)
    b_base = tl.full((HEADS,), LOWEST, tl.float32)
    b_sum = tl.zeros((HEADS,), tl.float32)
    for t in tl.range(first, last, TOKENS, num_stages=1):
        token = t + tl.arange(0, TOKENS)
        held = token < last
        position = tl.where(token < SINK, token, q_end + token - SINK)
        slot = tl.where(token < SINK, token, ring_slot(position, SINK, RING))
        k_real = held[:, None] & (channel < D)[None, :]
        v_real = held[:, None] & (v_channel < V_D)[None, :]
        b_k = tl.load(k_window + slot[:, None] * D + channel[None, :], mask=k_real, other=0.0)
        b_v = tl.load(v_window + slot[:, None] * V_D + v_channel[None, :], mask=v_real, other=0.0)
        b_s = dot_elements(b_k, b_q, tl.zeros((TOKENS, HEADS), tl.float32))
        b_s = row_scores(
            b_s, tl.where(held, position, length)[:, None], row[None, :], length, length, place, mask, b, h, N, G,
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
