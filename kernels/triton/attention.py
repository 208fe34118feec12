"""Decode attention over a quantized cache: split-K partial kernel, then the combination of the splits."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from ..formats import CacheFormat
from .attention_portable import LOG2E, decode_partial_portable_kernel
from .casts import round_to
from .support import on_device, side_constants

#: Tokens below which a split is not worth its share of the combination.
MIN_SPLIT_TOKENS = 128
#: Most splits of a sequence; the combination reads them all at once.
MAX_SPLITS = 128


@triton.jit
def decode_combine_kernel(
    part_out,
    part_max,
    part_sum,
    sink_logits,
    out,
    rows,
    HQ,
    N,
    splits,
    SINK_LOGITS: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    COLS: tl.constexpr,
):
    """Splits ``[splits, rows, D]`` to ``out [rows, D]``, one row a program.

        out = sum_i 2^(max_i - max) out_i / (sum_i 2^(max_i - max) sum_i + 2^(sink - max))

    Rows are in the order (batch, query head, query token). A row that saw nothing gives zero.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SPLITS)
    column = tl.arange(0, COLS)
    at = i.to(tl.int64) * rows + row
    b_max = tl.load(part_max + at, mask=i < splits, other=float("-inf"))
    b_sum = tl.load(part_sum + at, mask=i < splits, other=0.0)
    b_out = tl.load(part_out + at[:, None] * D + column[None, :], (i < splits)[:, None] & (column < D)[None, :], 0.0)
    top = tl.max(b_max, 0)
    if SINK_LOGITS:
        sink = tl.load(sink_logits + row // N % HQ).to(tl.float32) * LOG2E
        top = tl.maximum(top, sink)
    top = tl.where(top == float("-inf"), 0.0, top)
    b_weight = tl.exp2(b_max - top)
    total = tl.sum(b_weight * b_sum, 0)
    if SINK_LOGITS:
        total += tl.exp2(sink - top)
    b_out = tl.sum(b_weight[:, None] * b_out, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * D + column, round_to(b_out, out.dtype.element_ty), mask=column < D)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def choose_splits(device: torch.device, programs: int, tokens: int, waves: int = 4) -> int:
    """How many programs share a sequence of at most ``tokens``, so that the device is filled ``waves`` times."""
    wanted = -(-_multiprocessors(device) * waves // programs)
    return max(1, min(wanted, tokens // MIN_SPLIT_TOKENS, MAX_SPLITS))


def combine(
    part_out: torch.Tensor,
    part_max: torch.Tensor,
    part_sum: torch.Tensor,
    sink_logits: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Partial results ``[splits, rows, D]``, ``[splits, rows]`` twice, to ``out [B, Hq, N, D]``."""
    splits, rows, head_dim = part_out.shape
    decode_combine_kernel[(rows,)](
        part_out,
        part_max,
        part_sum,
        out if sink_logits is None else sink_logits.contiguous(),
        out,
        rows,
        out.shape[1],
        out.shape[2],
        splits,
        SINK_LOGITS=sink_logits is not None,
        SPLITS=triton.next_power_of_2(splits),
        D=head_dim,
        COLS=triton.next_power_of_2(head_dim),
        num_warps=4,
    )


def decode_attention(
    query: torch.Tensor,
    k_cache: tuple[torch.Tensor, ...],
    v_cache: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None,
    scale: float,
    causal: bool,
    softcap: float,
    sink_logits: torch.Tensor | None,
    k_fmt: CacheFormat,
    v_fmt: CacheFormat,
    splits: int | None = None,
) -> torch.Tensor:
    """Attention of ``query [B, Hq, N, D]`` to all tokens of a cache, ``[B, Hq, N, Dv]`` in the query's dtype.

    Semantics are those of ``reference.decode_attention``. Nothing is read back to the host: the grid follows from the
    capacity, and programs without tokens write an empty result.
    """
    batch, q_heads, rows, head_dim = query.shape
    heads = k_cache[2].shape[1]
    group = q_heads // heads
    value_dim = v_cache[2].shape[3]
    out = query.new_empty((batch, q_heads, rows, value_dim))
    if not out.numel():
        return out
    row_tiles = triton.cdiv(group * rows, 16)
    tokens = max(c[0].shape[2] * f.block + f.window for c, f in ((k_cache, k_fmt), (v_cache, v_fmt)))
    splits = splits or choose_splits(query.device, batch * heads * row_tiles, tokens)
    parts = torch.empty((splits, batch * q_heads * rows, value_dim + 2), dtype=torch.float32, device=query.device)
    flat = parts.view(-1)
    count = splits * batch * q_heads * rows
    part_out = flat[: count * value_dim].view(splits, -1, value_dim)
    part_max, part_sum = flat[count * value_dim :].view(2, splits, -1)
    mask_args = (query, 0, 0, 0, 0, 0)
    if mask is not None:
        mask = mask.expand(batch, q_heads, rows, mask.shape[-1])
        mask_args = (mask.view(torch.uint8) if mask.dtype == torch.bool else mask, mask.shape[-1], *mask.stride())
    # float32 has no tensor-core product of its own precision. 16-bit elements are exact in tf32, and a dequantized
    # key or value rounded to it keeps 11 bits with the range of bfloat16, which float16 operands would not have.
    precision = "ieee" if k_cache[2].dtype == torch.float32 or query.dtype == torch.float32 else "tf32"
    with on_device(query):
        decode_partial_portable_kernel[(batch * heads, row_tiles, splits)](
            query,
            *k_cache,
            *v_cache,
            mask_args[0],
            part_out,
            part_max,
            part_sum,
            heads,
            group,
            rows,
            k_cache[0].shape[2],
            v_cache[0].shape[2],
            *query.stride(),
            *mask_args[1:],
            scale,
            softcap,
            CAUSAL=causal,
            SOFTCAP=softcap != 0.0,
            MASK=0 if mask is None else 1 if mask.dtype == torch.bool else 2,
            PRECISION=precision,
            ROWS=16,
            TOKENS=32,
            **side_constants(k_fmt, head_dim, "K_"),
            **side_constants(v_fmt, value_dim, "V_"),
            num_warps=4,
        )
        combine(part_out, part_max, part_sum, sink_logits, out)
    return out
