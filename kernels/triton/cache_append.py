"""Append: writes new tokens to the recent window, and quantizes its oldest block when it is full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from .. import layout, reference
from ..backend import Append
from ..cache import Cache
from .addresses import quantized_blocks, tile_channels, window_slot
from .casts import round_to
from .constants import (
    STATE_HIDDEN,
    STATE_LENGTH,
    STATE_PEAK,
    STATE_SIZE,
    block_params,
    block_words,
    ring_slots,
    window_slots,
)
from .encode import copy_blocks
from .encode_at_once import encode_block, warps_for
from .support import launching, mode_constants, side_constants


@triton.jit
def _no_numbers(source, channel, real, SHAPE: tl.constexpr):
    return ()


@triton.jit
def _load_due(source, numbers, token, channel, real):
    """Load elements of a block that is to be quantized, in the dtype of the window: from the ring or the new tokens.

    ``source`` is ``(window, new, first token of the block, counted after the sinks, length, strides of new, SINK, RING,
    D)``. For the other arguments see ``encode.encode_blocks``.
    """
    window, new, first, length, stride_n, stride_d, SINK, RING, D = source
    r = first + token
    fresh = SINK + r - length  # index among the new tokens
    if real is None:
        held = fresh < 0
        fresh_mask = fresh >= 0
    else:
        held = real & (fresh < 0)
        fresh_mask = real & (fresh >= 0)
    b_x = tl.load(window + (SINK + r % RING) * D + channel, mask=held, other=0.0)
    b_new = tl.load(new + fresh.to(tl.int64) * stride_n + channel * stride_d, mask=fresh_mask, other=0.0)
    return tl.where(fresh_mask, round_to(b_new.to(tl.float32), b_x.dtype), b_x)


@triton.jit(noinline=True)
def _append_side(
    codes,
    scales,
    window,
    state,
    query_profile,
    new,
    bh,
    H,
    N,
    capacity,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    drop,
    due,
    ENCODE: tl.constexpr,
    WRITE: tl.constexpr,
    ROWS: tl.constexpr,
    IS_KEY: tl.constexpr,
    ENCODER: tl.constexpr,
    ROLLS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    USES_ANCHOR: tl.constexpr,
    USES_QUERIES: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
):
    """One (b, h) of one side. ``ENCODE``: quantize the ``due``-th new block. ``WRITE``: write the ring and the state.

    With both, all reads of the ring are before all writes: a new token may take the slot of one that is quantized. A
    cache that ``ROLLS`` has no blocks, and its peak stays 0.
    """
    RING: tl.constexpr = ring_slots(RECENT, BLOCK)
    new += bh // H * stride_b + bh % H * stride_h
    window += bh * (window_slots(SINK, RECENT, BLOCK) * D)
    if USES_QUERIES:
        query_profile += bh * (2 * D)
    state += bh * STATE_SIZE
    length = tl.load(state + STATE_LENGTH)
    peak = tl.load(state + STATE_PEAK)
    hidden = tl.load(state + STATE_HIDDEN)
    new_peak = tl.maximum(peak, length + N)
    channel, real = tile_channels(IS_KEY, SLICES, D, COLS)
    if WRITE and ROWS == 1:
        # issue the load of a single token before quantizing, so that it is not waited for
        b_new = tl.load(new + (channel * stride_d)[None, :], mask=real[None, :], other=0.0)
    if ENCODE and not ROLLS:
        block = quantized_blocks(peak, SINK, RECENT, BLOCK) + due
        # a caller has to make room first; if it did not, nothing is written out of bounds
        if (block < quantized_blocks(new_peak, SINK, RECENT, BLOCK)) & (block < capacity):
            source = (window, new, block * BLOCK, length, stride_n, stride_d, SINK, RING, D)
            at = bh * capacity + block
            p_codes = codes + at * block_words(BITS, BLOCK, D)
            if BITS == 0:
                copy_blocks(_load_due, _no_numbers, source, p_codes, 1, 1, IS_KEY, BLOCK, D, SLICES, COLS)
            else:
                p_scales = scales + at * block_params(BITS, HAS_ZERO, GROUP, BLOCK, D, scales.dtype.element_ty)
                encode_block(
                    _load_due, _no_numbers, source, query_profile, p_codes, p_scales,
                    IS_KEY, ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES, BITS, GROUP, BLOCK, D, SLICES, COLS,
                )  # fmt: skip
    if WRITE:
        tl.debug_barrier()  # every warp has read the ring and the state
        # of tokens that map to one slot only the last is written, so that the order of stores does not matter
        last = N - RING
        for i0 in range(tl.where(length < SINK, 0, tl.maximum(last, 0)), N, ROWS):
            i = i0 + tl.arange(0, ROWS)
            position = length + i
            slot = window_slot(position, SINK, RING)
            mask = (i < N) & ((position < SINK) | (i >= last))
            mask = mask[:, None] & real[None, :]
            if ROWS > 1:
                p_new = new + i.to(tl.int64)[:, None] * stride_n + (channel * stride_d)[None, :]
                b_new = tl.load(p_new, mask=mask, other=0.0)
            tl.store(
                window + slot[:, None] * D + channel[None, :],
                round_to(b_new.to(tl.float32), window.dtype.element_ty),
                mask=mask,
            )
        tl.store(state + STATE_LENGTH, length + N)
        if not ROLLS:
            tl.store(state + STATE_PEAK, new_peak)
        tl.store(state + STATE_HIDDEN, hidden + drop)


# Compiled once for all capacities: after a cache has grown, a CUDA graph may be recorded at once, which must not load
# another kernel. The same for how many tokens are dropped, none in the first steps and one in later ones.
@triton.jit(do_not_specialize=("k_capacity", "v_capacity", "drop"), do_not_specialize_on_alignment=("N",))
def append_fwd_kernel(
    k_codes,
    k_scales,
    k_window,
    k_state,
    k_query_profile,
    k_new,
    k_capacity,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    k_stride_d,
    v_codes,
    v_scales,
    v_window,
    v_state,
    v_query_profile,
    v_new,
    v_capacity,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    v_stride_d,
    H,
    N,
    drop,
    ENCODE: tl.constexpr,
    WRITE: tl.constexpr,
    ROWS: tl.constexpr,
    K_IS_KEY: tl.constexpr,
    K_ENCODER: tl.constexpr,
    K_ROLLS: tl.constexpr,
    K_HAS_ZERO: tl.constexpr,
    K_USES_ANCHOR: tl.constexpr,
    K_USES_QUERIES: tl.constexpr,
    K_BITS: tl.constexpr,
    K_GROUP: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_SINK: tl.constexpr,
    K_RECENT: tl.constexpr,
    K_D: tl.constexpr,
    K_SLICES: tl.constexpr,
    K_COLS: tl.constexpr,
    V_IS_KEY: tl.constexpr,
    V_ENCODER: tl.constexpr,
    V_ROLLS: tl.constexpr,
    V_HAS_ZERO: tl.constexpr,
    V_USES_ANCHOR: tl.constexpr,
    V_USES_QUERIES: tl.constexpr,
    V_BITS: tl.constexpr,
    V_GROUP: tl.constexpr,
    V_BLOCK: tl.constexpr,
    V_SINK: tl.constexpr,
    V_RECENT: tl.constexpr,
    V_D: tl.constexpr,
    V_SLICES: tl.constexpr,
    V_COLS: tl.constexpr,
):
    """Program (b * H + h, side, new block). Sides are keys and values; if there is only one, the grid has size 1."""
    bh = tl.program_id(0).to(tl.int64)
    due = tl.program_id(2)
    if tl.program_id(1) == 0:
        _append_side(
            k_codes, k_scales, k_window, k_state, k_query_profile, k_new, bh, H, N, k_capacity,
            k_stride_b, k_stride_h, k_stride_n, k_stride_d, drop, due, ENCODE, WRITE, ROWS,
            K_IS_KEY, K_ENCODER, K_ROLLS, K_HAS_ZERO, K_USES_ANCHOR, K_USES_QUERIES, K_BITS, K_GROUP, K_BLOCK,
            K_SINK, K_RECENT, K_D, K_SLICES, K_COLS,
        )  # fmt: skip
    else:
        _append_side(
            v_codes, v_scales, v_window, v_state, v_query_profile, v_new, bh, H, N, v_capacity,
            v_stride_b, v_stride_h, v_stride_n, v_stride_d, drop, due, ENCODE, WRITE, ROWS,
            V_IS_KEY, V_ENCODER, V_ROLLS, V_HAS_ZERO, V_USES_ANCHOR, V_USES_QUERIES, V_BITS, V_GROUP, V_BLOCK,
            V_SINK, V_RECENT, V_D, V_SLICES, V_COLS,
        )  # fmt: skip


def _is_writable(cache: Cache) -> bool:
    """Whether the tensors of a cache are dense, and its query profile is there if its mode uses one."""
    profile = cache.query_profile
    if cache.format.uses_queries and (profile is None or not profile.is_contiguous()):
        return False
    return all(tensor.is_contiguous() for tensor in cache.encoded)


def append_(sides: Sequence[Append], drop: int = 0, num_warps: int | None = None) -> None:
    """Write new tokens behind the end of one or two caches, in place, see ``reference.append_``.

    One launch for up to a block of tokens; two for more, so that blocks are quantized side by side while the ring is
    still as it was. What is due is decided on the device.

    Args:
        sides: one or two of ``(cache, new [B, H, N, D])`` with equal B, H and N.
        drop: how many more tokens at the front the program's tensor does not have any longer.
        num_warps: warps a program, instead of the default.
    """
    if not all(_is_writable(cache) for cache, _ in sides):
        for cache, new in sides:  # only views that nobody makes on the fast path are not dense
            reference.append_(cache, new, drop)
        return
    (_, first), (_, last) = sides[0], sides[-1]
    if first.shape[:3] != last.shape[:3]:
        for side in sides:
            append_((side,), drop, num_warps)
        return
    batch, heads, count, _ = first.shape
    if not first.numel():
        for cache, _ in sides:
            cache.state[..., layout.HIDDEN] += drop
        return
    tensors: list[Any] = []
    constants: dict[str, Any] = {}
    for prefix, (cache, new) in zip(("K_", "V_"), (sides[0], sides[-1]), strict=True):
        tensors += [*cache.encoded, cache.query_profile, new, cache.codes.shape[2], *new.stride()]
        constants |= side_constants(cache.format, new.shape[3], prefix) | mode_constants(cache.format, prefix)
    blocks = [cache.format.block for cache, _ in sides if not cache.format.rolls]
    warps = num_warps or max(warps_for(cache.format, new.shape[3]) for cache, new in sides)
    launches = [(True, True, 1)]
    if count > min(blocks, default=count):  # more than one block may have to be quantized
        launches = [(True, False, -(-count // min(blocks))), (False, True, 1)]
    with launching(first, append_fwd_kernel):
        for encode, write, due in launches:
            append_fwd_kernel[(batch * heads, len(sides), due)](
                *tensors,
                heads,
                count,
                drop,
                ENCODE=encode,
                WRITE=write,
                ROWS=1 if count == 1 else 16,
                **constants,
                num_warps=warps,
            )
