"""The query of an attention in the layout that operators take."""

from __future__ import annotations

from torch.fx import Node

from ..attention.axes import rearrange
from ..context import AttentionMatch
from ..graph.writing import Writer


def standard_query(write: Writer, match: AttentionMatch) -> Node:
    """The query of an attention as ``[B, Hq, N, D]``, whose heads follow those of the keys.

    Raises:
        NoMatch: if its dimensions cannot be brought into this order.
    """
    axes = match.axes
    return rearrange(write, match.query, axes.query, (axes.batch, axes.heads, axes.rows, axes.key_dim))
