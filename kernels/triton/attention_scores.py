"""From products of query and keys to scores: scale, soft cap, causality and masks."""

from __future__ import annotations

import triton
import triton.language as tl

from .constants import LOG2E


@triton.jit
def row_scores(
    b_s,
    position,
    row,
    last,
    length,
    shift,
    mask,
    b,
    h,
    N,
    G,
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
):
    """Scores in units of log2 from products ``b_s`` of query and keys; -inf for hidden tokens.

    Tokens from ``last`` on are hidden; ``length`` is that of the whole sequence. ``position`` and ``row`` broadcast
    against ``b_s``, which is ``[rows, tokens]`` or ``[tokens, rows]``. Row r of a KV head is query head ``r // N`` of
    its group and query token ``r % N``. ``MASK`` is 0 without a mask, 1 for a boolean one (as bytes), 2 for one that is
    added to the scores. Masks are indexed by where the tensor that the program attends to has a token, ``position +
    shift``; of tokens that it does not have the caller passes ``last`` as the position.
    """
    n = row % N
    b_s *= scale
    if SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), exact in both limits
        b_s = softcap * (1.0 - 2.0 / (tl.exp2(b_s * (2.0 * LOG2E / softcap)) + 1.0))
    visible = (position < last) & (row < N * G)
    if CAUSAL:
        visible = visible & (position <= length - N + n)
    if MASK > 0:
        p_mask = mask + b * mask_stride_b + (h * G + row // N).to(tl.int64) * mask_stride_h
        p_mask += n.to(tl.int64) * mask_stride_n
        p_mask += tl.minimum(position + shift, mask_tokens - 1).to(tl.int64) * mask_stride_s
        b_mask = tl.load(p_mask, mask=visible, other=0)
        if MASK == 1:
            visible = visible & (b_mask != 0)
        else:
            b_s += b_mask.to(tl.float32)
    return tl.where(visible, b_s * LOG2E, float("-inf"))
