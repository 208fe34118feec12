"""Adds up the results of an attention that reads several caches, from one operator for each of them.

total = logaddexp(sum_0, sum_1)                          [B, Hq, N]
out = out_0 * exp(sum_0 - total) + out_1 * exp(sum_1 - total)
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
    total = parts[0][1]
    for _, sums in parts[1:]:
        total = write.call(torch.logaddexp, total, sums)
    out = None
    for part, sums in parts:
        # where no part sees a token, minus infinity less minus infinity: such a row is zero
        share = write.method("nan_to_num", write.method("exp", write.call(operator.sub, sums, total)))
        added = write.call(operator.mul, part, write.method("unsqueeze", share, -1))
        out = added if out is None else write.call(operator.add, out, added)
    assert out is not None, "there are parts"
    return write.method("to", out, example(like).dtype, like=like)
