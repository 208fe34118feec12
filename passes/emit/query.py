"""Brings the query and the sink logits of an attention into the layout of the operators."""

from __future__ import annotations

from torch.fx import Node

from ..attention.axes import rearrange
from ..context import AttentionMatch
from ..graph.writing import Writer


def standard_query(write: Writer, match: AttentionMatch) -> Node:
    """The query of an attention as ``[B, Hq, N, D]``, with the query heads of a KV head next to each other.

    Raises:
        NoMatch: if it cannot be brought into this layout.
    """
    axes = match.axes
    return rearrange(write, match.query, axes.query, (axes.batch, axes.heads, axes.rows, axes.key_dim))


def standard_sinks(write: Writer, match: AttentionMatch) -> Node | None:
    """The sink logits of an attention as ``[Hq]``, in the order of the heads of `standard_query`; None if it has none.

    Raises:
        NoMatch: if they cannot be brought into this layout.
    """
    if match.sink_logits is None:
        return None
    return rearrange(write, match.sink_logits, match.axes.sinks, (match.axes.heads,))
