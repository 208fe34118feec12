"""Rewind: truncates keys and values to a length on the device, in one launch. See ``reference.truncate_``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ..cache import Cache
from .addresses import quantized_blocks, quantized_end, tile_channels
from .casts import round_to
from .constants import (
    STATE_HIDDEN,
    STATE_LENGTH,
    STATE_PEAK,
    STATE_SIZE,
    STATE_START,
    largest,
    ring_slots,
    window_slots,
)
from .support import interpreted, launching, side_constants
from .unpack import load_tokens

#: Device assertions need Triton's debug mode, which by default also checks additions for overflow.
OPTIONS = {} if interpreted() else {"debug": True, "sanitize_overflow": False}


@triton.jit
def _rewind_side(
    codes,
    scales,
    window,
    state,
    target,
    bh,
    capacity,
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
    """One (b, h) of one side: dequantize the remaining tokens of a truncated block into the ring, and set the state."""
    RING: tl.constexpr = ring_slots(RECENT, BLOCK)
    p_state = state + bh * STATE_SIZE
    start = tl.load(p_state + STATE_START)
    length = tl.load(p_state + STATE_LENGTH)
    peak = tl.load(p_state + STATE_PEAK)
    hidden = tl.load(p_state + STATE_HIDDEN)
    reached = (start + length - hidden >= target) & (target >= 0)
    tl.device_assert(reached, "innerq: a static cache was written behind the tokens that it holds")
    if start + length - hidden > target:  # rare in a decode step
        new_start = tl.minimum(start, target + hidden)
        kept = target + hidden - new_start
        new_peak = tl.minimum(peak, kept + RECENT)
        end = quantized_end(p_state, SINK, RECENT, BLOCK)
        new_end = SINK + quantized_blocks(new_peak, SINK, RECENT, BLOCK) * BLOCK
        position = new_end + tl.arange(0, BLOCK)
        # no more blocks than the capacity, as in the reference
        held = (position < kept) & (position < end) & (position < SINK + capacity * BLOCK)
        b_x = load_tokens(
            codes, scales, window, bh, capacity, position, held, end, True, False,
            IS_KEY, HAS_ZERO, BITS, GROUP, BLOCK, SINK, RECENT, D, SLICES, COLS,
        )  # fmt: skip
        channel, real = tile_channels(IS_KEY, SLICES, D, COLS)
        slot = SINK + (position - SINK) % RING
        if window.dtype.element_ty != tl.float32:  # finite numbers stay finite in the dtype of the window
            LARGEST: tl.constexpr = largest(window.dtype.element_ty)
            b_x = tl.where(tl.abs(b_x) < float("inf"), tl.minimum(tl.maximum(b_x, -LARGEST), LARGEST), b_x)
        tl.store(
            window + (bh * window_slots(SINK, RECENT, BLOCK) + slot)[:, None] * D + channel[None, :],
            round_to(b_x, window.dtype.element_ty),
            mask=held[:, None] & real[None, :],
        )
        tl.debug_barrier()  # every warp has read the state
        tl.store(p_state + STATE_START, new_start)
        tl.store(p_state + STATE_LENGTH, kept)
        tl.store(p_state + STATE_PEAK, new_peak)


@triton.jit(do_not_specialize=("k_capacity", "v_capacity"))
def rewind_fwd_kernel(
    k_codes,
    k_scales,
    k_window,
    k_state,
    k_capacity,
    v_codes,
    v_scales,
    v_window,
    v_state,
    v_capacity,
    position,
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
    """Program (b * H + h, side)."""
    bh = tl.program_id(0).to(tl.int64)
    target = tl.load(position).to(tl.int32)
    if tl.program_id(1) == 0:
        _rewind_side(
            k_codes, k_scales, k_window, k_state, target, bh, k_capacity,
            K_IS_KEY, K_HAS_ZERO, K_BITS, K_GROUP, K_BLOCK, K_SINK, K_RECENT, K_D, K_SLICES, K_COLS,
        )  # fmt: skip
    else:
        _rewind_side(
            v_codes, v_scales, v_window, v_state, target, bh, v_capacity,
            V_IS_KEY, V_HAS_ZERO, V_BITS, V_GROUP, V_BLOCK, V_SINK, V_RECENT, V_D, V_SLICES, V_COLS,
        )  # fmt: skip


def rewind_(sides: Sequence[Cache], position: torch.Tensor) -> None:
    """Truncate keys and values to ``position`` tokens, padding included, in place.

    Args:
        sides: keys and values, with equal B and H; contiguous tensors.
        position: a tensor with one element, of any integer dtype, on the caches' device. A device-side assertion fails
            if a cache is shorter.
    """
    tensors: list[Any] = []
    constants: dict[str, Any] = {}
    for prefix, cache in zip(("K_", "V_"), sides, strict=True):
        tensors += [*cache.encoded, cache.codes.shape[2]]
        constants |= side_constants(cache.format, cache.window.shape[3], prefix)
    batch, heads = sides[0].state.shape[:2]
    with launching(position, rewind_fwd_kernel):
        rewind_fwd_kernel[(batch * heads, 2)](*tensors, position, **constants, num_warps=4, **OPTIONS)
