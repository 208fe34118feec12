"""Decides which channels of a key cache share a normalization."""

from __future__ import annotations

from torch.fx import Node

from ...kernels.formats import CacheFormat
from ...kernels.pairs import pairs_of
from ..context import Config
from ..graph.aliases import Writes
from .channel_paths import find_path


def shared_norm(key: Node, fmt: CacheFormat, config: Config, changes: Writes) -> str:
    """The value of ``CacheFormat.norm`` for a cache of ``key [B, H, N, D]``.

    With ``key_norm="pair"`` it is the rotary pairs, if the rotary embedding is recognized; otherwise ``fmt.norm``.
    """
    if not config.normalize_keys or config.key_norm != "pair":
        return fmt.norm
    path = find_path(key, None, changes)
    pairs = None if path is None else pairs_of(path.partners)
    return fmt.norm if pairs is None else pairs.word
