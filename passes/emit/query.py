"""Brings the query and the sink logits of an attention into the layout of the operators."""

from __future__ import annotations

from torch.fx import Node

from ..attention.axes import flat, rearrange, resolve
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
    """The sink logits of an attention as ``[Hq]``, or ``[B, Hq, N]`` if they are `sinks_differ`; None if it has none.

    Heads are in the order of those of `standard_query`.

    Raises:
        NoMatch: if they cannot be brought into this layout.
    """
    if match.sink_logits is None:
        return None
    axes = match.axes
    target = (axes.batch, axes.heads, axes.rows) if sinks_differ(match) else (axes.heads,)
    return rearrange(write, match.sink_logits, axes.sinks, target)


def sinks_differ(match: AttentionMatch) -> bool:
    """Whether the sink logits of an attention are not the same for all sequences and tokens of the query."""
    return match.sink_logits is not None and not {*flat(match.axes.sinks)} <= {*resolve(match.axes.heads)}
