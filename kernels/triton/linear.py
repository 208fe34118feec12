"""Linear layers of a single row, on which a decode step of one sequence spends most of its time.

Every element of a weight is read once and used once, so tensor cores gain nothing. A program multiplies a few rows of a
weight with the input, elementwise in float32, and sums up at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .dependent import wait_for_others
from .support import launching, next_power_of_2


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the kernel is launched.

    Attributes:
        outputs: rows of the weight per program.
        inputs: elements of a row that it loads at a time.
        num_warps: warps per program.
    """

    outputs: int
    inputs: int
    num_warps: int


def choose_launch(inputs: int) -> Launch:
    """The launch for weights of ``inputs`` columns: on an H100 within 3% of the best tried, for five shapes."""
    width = min(next_power_of_2(inputs), 2048)
    return Launch(1, width, max(1, width // 512))


def other_launches(own: Launch, inputs: int) -> list[Launch]:
    """The launches that autotuning times besides ``own``."""
    widths = {min(next_power_of_2(inputs), width) for width in (1024, 2048, 4096)}
    found = [
        Launch(outputs, width, warps)
        for width in sorted(widths)
        for outputs in (1, 2, 4)
        for warps in (4, 8)
        if 512 <= outputs * width <= 8192
    ]
    return [launch for launch in found if launch != own]


@triton.jit
def _weights(rows, k, K: tl.constexpr, BK: tl.constexpr):
    """Load columns ``k [BK]`` of the rows that begin at ``rows [BN, 1]``; columns from ``K`` on are zero."""
    if K % BK == 0:
        b_w = tl.load(rows + k[None, :], eviction_policy="evict_first")
    else:
        b_w = tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")
    return b_w


@triton.jit
def _inputs(x, k, K: tl.constexpr, BK: tl.constexpr):
    """Load elements ``k`` of the row, ``[1, BK]`` float32."""
    b_x = tl.load(x + k) if K % BK == 0 else tl.load(x + k, mask=k < K, other=0.0)
    return b_x.to(tl.float32)[None, :]


@triton.jit
def product_of_row(
    x, weight, bias, n, N, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr, AHEAD: tl.constexpr
):
    """Outputs ``n [BN]`` of a linear layer, float32; unspecified from ``N`` on. ``bias`` may be None.

    ``PDL``: wait for the previous kernels, see ``dependent.py``. ``AHEAD``: issue the first loads of weights before
    that; no kernel may be writing them.
    """
    real = n < N
    rows = weight + tl.where(real, n, 0).to(tl.int64)[:, None] * K
    k = tl.arange(0, BK)
    if not AHEAD:
        wait_for_others(PDL)
    b_w = _weights(rows, k, K, BK)
    if AHEAD:
        wait_for_others(PDL)
    b_sum = b_w.to(tl.float32) * _inputs(x, k, K, BK)
    for k0 in range(BK, K, BK):
        b_sum += _weights(rows, k0 + k, K, BK).to(tl.float32) * _inputs(x, k0 + k, K, BK)
    b_out = tl.sum(b_sum, 1)
    if bias is not None:
        b_out += tl.load(bias + n, mask=real, other=0.0).to(tl.float32)
    return b_out


@triton.jit
def row_linear_kernel(x, weights, biases, widths, out, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Program: ``BN`` outputs of a layer. ``widths``: how many outputs each layer has; ``out``: those of all layers."""
    tile = tl.program_id(0)
    for i in tl.static_range(len(weights)):
        tiles = tl.cdiv(widths[i], BN)
        if (tile >= 0) & (tile < tiles):
            n = tile * BN + tl.arange(0, BN)
            b_out = product_of_row(x, weights[i], biases[i], n, widths[i], K, BN, BK, False, False)
            tl.store(out + n, b_out.to(out.dtype.element_ty), mask=n < widths[i])
        tile -= tiles
        out += widths[i]


def row_linear(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    launch: Launch | None = None,
) -> torch.Tensor:
    """See ``ops.row_linear``. Weights have to be contiguous."""
    widths = tuple(weight.shape[0] for weight in weights)
    inputs = x.shape[-1]
    launch = launch or choose_launch(inputs)
    out = x.new_empty((*x.shape[:-1], sum(widths)))
    grid = sum(triton.cdiv(width, launch.outputs) for width in widths)
    with launching(x, row_linear_kernel):
        row_linear_kernel[(grid,)](
            x.contiguous(),
            tuple(weights),
            tuple(biases),
            widths,
            out,
            K=inputs,
            BN=launch.outputs,
            BK=launch.inputs,
            num_warps=launch.num_warps,
        )
    return out
