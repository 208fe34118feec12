"""Loads the query profile in a Triton kernel, packed as four channels per int32."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

#: Bits 0 to 6 of all four bytes.
BELOW_SIGNS = tl.constexpr(0x7F7F7F7F)


@triton.jit
def query_words(queries, channel, ROWS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr):
    """Load the query profile of the groups that begin at ``channel``, which broadcasts to ``[ROWS, 8]``.

    ``queries`` points to the profile, see ``reference.query_profile``. Returns ``(means, weights)``, each a tuple of
    int32 ``[ROWS, 8]`` that hold four channels: two neighbours, and the same two of the next slice, in the order of the
    tiles of elements.
    """
    p_pairs = queries.to(tl.pointer_type(tl.int16), bitcast=True) + (channel // 2 + tl.arange(0, 8)[None, :])
    p_pairs = tl.broadcast_to(p_pairs, (ROWS, 8))
    means, weights = (), ()
    for i in tl.static_range(0, GROUP // 16, 2):
        b_means = tl.load(p_pairs + i * 8).to(tl.int32) & 0xFFFF
        b_weights = tl.load(p_pairs + (D // 2 + i * 8)).to(tl.int32) & 0xFFFF
        if GROUP > 16:
            b_means |= tl.load(p_pairs + (i + 1) * 8).to(tl.int32) << 16
            b_weights |= tl.load(p_pairs + (D // 2 + (i + 1) * 8)).to(tl.int32) << 16
        means, weights = means + (b_means,), weights + (b_weights,)
    return means, weights


@triton.jit
def channel_numbers(queries, TILE: tl.constexpr):
    """Means and weights, float32, of the channels of tile ``TILE``. ``queries`` is of :func:`query_words`."""
    means, weights = queries
    b_mean = (means[TILE // 4] << (24 - TILE % 4 * 8)) >> 24
    b_weight = (weights[TILE // 4] >> (TILE % 4 * 8)) & 0xFF
    return b_mean.to(tl.float32), b_weight.to(tl.float32)
