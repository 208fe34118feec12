"""The second half of decode attention: combines the partial results of the splits of a sequence."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .casts import round_to
from .constants import LOG2E
from .support import launching

#: Columns of the result per program.
COLUMNS = 32


@triton.jit
def combined(
    part_out,
    part_max,
    part_sum,
    sink_logits,
    row,
    column,
    rows,
    HQ,
    N,
    splits,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
):
    """Columns ``column [COLS]`` of row ``row`` (int64) of the result, float32, from splits ``[splits, rows, D]``.

        out = sum_i 2^(max_i - max) out_i / (sum_i 2^(max_i - max) sum_i + 2^(sink - max))

    Rows are in the order (batch, query head, query token). A row to which no token is visible gives zero.
    Sink logits are ``[HQ]``; one for each row, with ``HQ = rows`` and ``N = 1``; or None. ``SPLITS`` is a power of two,
    at least ``splits``.
    """
    i = tl.arange(0, SPLITS)
    at = i.to(tl.int64) * rows + row
    b_max = tl.load(part_max + at, mask=i < splits, other=float("-inf"))
    b_sum = tl.load(part_sum + at, mask=i < splits, other=0.0)
    b_out = tl.load(part_out + at[:, None] * D + column[None, :], (i < splits)[:, None] & (column < D)[None, :], 0.0)
    top = tl.max(b_max, 0)
    if sink_logits is not None:
        sink = tl.load(sink_logits + row // N % HQ).to(tl.float32) * LOG2E
        top = tl.maximum(top, sink)
    top = tl.where(top == float("-inf"), 0.0, top)
    b_weight = tl.exp2(b_max - top)
    total = tl.sum(b_weight * b_sum, 0)
    if sink_logits is not None:
        total += tl.exp2(sink - top)
    return tl.sum(b_weight[:, None] * b_out, 0) / tl.where(total == 0.0, 1.0, total)


@triton.jit(do_not_specialize=["rows", "HQ", "N", "splits"])
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
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    COLS: tl.constexpr,
):
    """``out [rows, D]``, see :func:`combined`; program (row, columns)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    b_out = combined(part_out, part_max, part_sum, sink_logits, row, column, rows, HQ, N, splits, SPLITS, D)
    tl.store(out + row * D + column, round_to(b_out, out.dtype.element_ty), mask=column < D)


def num_warps(splits: int) -> int:
    """Warps per program for this number of splits."""
    return 4 if splits <= 128 else 8


def combine(
    part_out: torch.Tensor,
    part_max: torch.Tensor,
    part_sum: torch.Tensor,
    sink_logits: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Combine partial results ``[splits, rows, D]`` and twice ``[splits, rows]`` into ``out [B, Hq, N, D]``."""
    splits, rows, head_dim = part_out.shape
    by_row = sink_logits is not None and sink_logits.dim() == 3
    with launching(out, decode_combine_kernel):
        decode_combine_kernel[(rows, triton.cdiv(head_dim, COLUMNS))](
            part_out,
            part_max,
            part_sum,
            None if sink_logits is None else sink_logits.contiguous(),
            out,
            rows,
            rows if by_row else out.shape[1],
            1 if by_row else out.shape[2],
            splits,
            SPLITS=triton.next_power_of_2(splits),
            D=head_dim,
            COLS=COLUMNS,
            num_warps=num_warps(splits),
        )
