"""Whether the keys of a cache may be held without their mean.

The mean changes all scores of a query by the same number. A softmax does not see it, but a soft-cap does, which is a
function of the scores themselves: ``softcap * tanh(scores / softcap)``.
"""

from __future__ import annotations

from torch.fx import Node

from ..context import AttentionMatch, CacheInput, PassContext

CAPPED = "its scores are soft-capped, and the keys of its cache are held without their mean"


def may_centre(keys: Node, context: PassContext) -> bool:
    """Whether the mean may be taken out of keys that this graph quantizes: of a buffer, or of a cache it returns."""
    capped = (key for match, (key, _) in context.uses.items() if match.softcap)
    held = (key.returned if key.of_buffer is None else key.of_buffer.buffer for key in capped)
    return context.config.centre_keys and keys not in held


def obstacle(match: AttentionMatch, key: CacheInput) -> str | None:
    """Why an attention cannot read the keys of a cache as they are held; None if it can."""
    return CAPPED if match.softcap and key.tensors.mean is not None else None
