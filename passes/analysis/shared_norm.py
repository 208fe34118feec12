"""Which channels of a cache are to share a key normalization."""

from __future__ import annotations

from torch.fx import Node

from ...kernels.formats import CacheFormat
from ...kernels.pairs import pairs_of
from ..context import Config
from ..graph.aliases import Writes
from .channel_paths import find_path


def shared_norm(key: Node, fmt: CacheFormat, config: Config, changes: Writes) -> str:
    """``CacheFormat.norm`` for a cache of ``key [B, H, N, D]``: by rotary pairs where it can then be folded."""
    if not config.normalize_keys or config.key_norm != "pair":
        return fmt.norm
    path = find_path(key, None, changes)
    pairs = None if path is None else pairs_of(path.partners)
    return fmt.norm if pairs is None else pairs.word
