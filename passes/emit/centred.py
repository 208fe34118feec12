"""What the mean that was taken out of the keys would add to the scores of a query.

    q' . k' = q . k - q . mean

It is the same for all tokens of a cache, so that a softmax over these alone does not see it. One that is over a sink
logit, or over the tokens of another cache, as well does.
"""

from __future__ import annotations

import operator

from torch.fx import Node

from ...kernels.formats import compute_dtype
from ..context import CacheInput
from ..graph.values import example, sizes_of
from ..graph.writing import Writer
from .channels import without_zeros


def share_of_mean(write: Writer, query: Node, key: CacheInput, scale: float) -> Node | None:
    """What is missing in the scores, ``[B, Hq, N]`` float32 or float64; None if no mean was taken out of the keys.

    Args:
        write: a writer of the graph.
        query: ``[B, Hq, N, D]``, not normalized.
        key: the cache of the keys.
        scale: the factor of the scores.
    """
    if key.tensors.mean is None:
        return None
    mean = without_zeros(write, key.tensors.mean, key.format)
    groups = sizes_of(query)[1] // sizes_of(mean)[1]
    if groups > 1:
        mean = write.method("repeat_interleave", mean, groups, 1)
    query = write.method("to", query, compute_dtype(example(query).dtype))
    products = write.call(operator.mul, query, write.method("unsqueeze", mean, 2))
    return write.call(operator.mul, write.method("sum", products, -1), scale)
