"""Dequantizes a cache."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...kernels.schemas import arguments_of
from ..context import CacheInput, ProgramCache
from ..graph.values import sizes_of
from ..graph.writing import Writer
from .channels import contiguous_without_zeros


def dequantized(
    write: Writer, cache: CacheInput, length: Node | int, dropped: Node | int = 0, like: Node | None = None
) -> Node:
    """The first ``length`` tokens of a cache as a dense tensor ``[B, H, S, D]``; ``dropped`` as of `AttentionCall`."""
    drops = () if isinstance(dropped, int) and dropped == 0 else (dropped,)
    arguments = arguments_of("dequantize", cache.tensors, length, *drops)
    held = write.call(torch.ops.innerq.dequantize.default, *arguments, like=like)
    return contiguous_without_zeros(write, held, cache.format, like)


def cache_as_dense(write: Writer, cache: ProgramCache) -> Node:
    """All tokens of a cache as a contiguous dense tensor in the program's layout."""
    length = write.number(sizes_of(cache.placeholder)[cache.tokens_dim])
    dense = dequantized(write, cache, length)
    if cache.tokens_dim == 1:
        dense = write.method("contiguous", write.method("transpose", dense, 1, 2))
    return dense
