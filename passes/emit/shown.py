"""Which keys of a prompt a mask shows, as a tensor of the graph."""

from __future__ import annotations

import operator

from torch.fx import Node

from ..analysis.causal_masks import CausalMask
from ..graph.writing import Writer


def shown_keys(write: Writer, mask: CausalMask) -> Node | None:
    """``[B or 1, S]`` bool, False for keys that a mask hides from all queries; None if it hides none from all."""
    shown: Node | None = None
    for part in mask.shown:
        by_key = write.call(operator.getitem, part, (slice(None), 0, 0))
        shown = by_key if shown is None else write.call(operator.and_, shown, by_key)
    return shown
