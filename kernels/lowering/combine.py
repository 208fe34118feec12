"""The combination of the splits, in Inductor's own terms, so that it is fused with what follows.

    top = max_i max_i        total = sum_i 2^(max_i - top) sum_i        out = sum_i 2^(max_i - top) out_i / total

All three are reductions over the splits with one element for each element of the result, so that Inductor makes one
kernel of them and of the cast and transposition behind them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import sympy
import torch
from torch._inductor import ir
from torch._inductor.virtualized import ops

LOG2E = 1.4426950408889634
#: Inductor keeps a reduction of so many elements in registers, whatever its direction. More splits are added up in
#: several, which is written out.
PERSISTENT = 64
_NOTHING = float("-inf")


def combine(
    parts: ir.TensorBox,
    sink_logits: ir.TensorBox | None,
    splits: sympy.Expr,
    most: int,
    shape: Sequence[sympy.Expr],
    dtype: torch.dtype,
) -> ir.TensorBox:
    """Results of a partial kernel (``attention.decode_partials``, in one dimension) to ``[B, Hq, N, Dv]`` in ``dtype``.

    Args:
        splits: how many there are; ``most`` is a bound that is known now.
    """
    batch, heads, rows, width = shape
    count = batch * heads * rows
    load = parts.make_loader()
    deep = -(-most // PERSISTENT)
    wide = -(-most // deep)

    def out_of(split, index):
        return load([(split * count + _row(index, heads, rows)) * width + index[3]])

    def max_of(split, index):
        return load([splits * count * width + split * count + _row(index, heads, rows)])

    def sum_of(split, index):
        return load([splits * count * (width + 1) + split * count + _row(index, heads, rows)])

    def folded(reduction_type: str, body):
        """The loader of ``body(split, index)`` reduced over all splits, ``[B, Hq, N, Dv]``."""
        combined, neutral = (ops.maximum, _NOTHING) if reduction_type == "max" else (ops.add, 0.0)

        def inner(index, reduction_index):
            values = []
            for i in range(deep):
                split = reduction_index[0] + wide * i
                if isinstance(splits, sympy.Integer) and wide * (i + 1) <= splits:
                    values.append(body(split, index))
                else:
                    there = ops.lt(ops.index_expr(split, torch.int32), ops.index_expr(splits, torch.int32))
                    values.append(ops.masked(there, lambda split=split: body(split, index), neutral))
            return functools.reduce(combined, values)

        result = ir.Reduction.create(
            device=parts.get_device(),
            dst_dtype=torch.float32,
            src_dtype=torch.float32,
            inner_fn=inner,
            ranges=list(shape),
            reduction_ranges=[sympy.Integer(wide)],
            reduction_type=reduction_type,
        )
        if isinstance(result.data.data, ir.Reduction):
            result.realize()
        return result.make_loader()

    largest = folded("max", max_of)
    sink_loader = None if sink_logits is None else sink_logits.make_loader()

    def sink(index):
        return ops.mul(ops.to_dtype(sink_loader([index[1]]), torch.float32), ops.constant(LOG2E, torch.float32))

    def top(index):
        """The largest score of a row, 0 where it saw nothing: ``2^(-inf - 0) = 0``."""
        value = largest(index)
        if sink_loader is not None:
            value = ops.maximum(value, sink(index))
        zero, nothing = ops.constant(0.0, torch.float32), ops.constant(_NOTHING, torch.float32)
        return ops.where(ops.eq(value, nothing), zero, value)

    def weighted(what):
        return lambda split, index: ops.mul(ops.exp2(ops.sub(max_of(split, index), top(index))), what(split, index))

    total, out = folded("sum", weighted(sum_of)), folded("sum", weighted(out_of))

    def result(index):
        denominator = total(index)
        if sink_loader is not None:
            denominator = ops.add(denominator, ops.exp2(ops.sub(sink(index), top(index))))
        one, empty = ops.constant(1.0, torch.float32), ops.eq(denominator, ops.constant(0.0, torch.float32))
        return ops.to_dtype(ops.truediv(out(index), ops.where(empty, one, denominator)), dtype)

    return ir.Pointwise.create(device=parts.get_device(), dtype=dtype, inner_fn=result, ranges=list(shape))


def _row(index, heads, rows):
    batch, head, row, _ = index
    return (batch * heads + head) * rows + row
