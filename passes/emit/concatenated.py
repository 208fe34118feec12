"""Adds up the results of an attention that reads several caches, from one operator for each of them.

top = maximum(sum_0, sum_1)                              [B, Hq, N]
out = (out_0 * exp(sum_0 - top) + out_1 * exp(sum_1 - top)) / (exp(sum_0 - top) + exp(sum_1 - top))
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from ..graph.values import example
from ..graph.writing import Writer


def added_up(write: Writer, parts: list[tuple[Node, Node]], like: Node) -> Node:
    """The output ``[B, Hq, N, Dv]`` of an attention, in place of ``like``.

    Args:
        write: a writer of the graph.
        parts: the results of ``innerq::decode_attention_lse`` for each cache.
        like: the program's output.
    """
    top = parts[0][1]
    for _, sums in parts[1:]:
        top = write.call(torch.maximum, top, sums)
    out = total = None
    for part, sums in parts:
        # 1 where no part sees a token, minus infinity less minus infinity: what each of them gives is zero there
        share = write.method("exp", write.method("nan_to_num", write.call(operator.sub, sums, top)))
        total = share if total is None else write.call(operator.add, total, share)
        added = write.call(operator.mul, part, write.method("unsqueeze", share, -1))
        out = added if out is None else write.call(operator.add, out, added)
    assert out is not None and total is not None, "there are parts"
    out = write.call(operator.truediv, out, write.method("unsqueeze", total, -1))
    return write.method("to", out, example(like).dtype, like=like)
