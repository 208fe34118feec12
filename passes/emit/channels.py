"""Puts zeros behind the channels of a tensor that meets a cache held wider than the program sees it, and cuts them off.

See ``kernels/channels.py``. Nothing is inserted for a cache that is held as it is.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from ...kernels.formats import CacheFormat
from ..graph.writing import Writer


def with_zeros(write: Writer, node: Node, fmt: CacheFormat) -> Node:
    """A query, keys or values ``[..., D]`` as a cache of this format holds them."""
    return write.call(torch.constant_pad_nd, node, (0, fmt.zeros)) if fmt.zeros else node


def contiguous_without_zeros(write: Writer, node: Node, fmt: CacheFormat, like: Node | None) -> Node:
    """The program's channels of ``node``, in place of ``like``: contiguous, as programs expect that take views."""
    return write.method("contiguous", without_zeros(write, node, fmt), like=like) if fmt.zeros else node


def without_zeros(write: Writer, node: Node, fmt: CacheFormat) -> Node:
    """The program's channels of a tensor that has those of a cache: a view of it."""
    if not fmt.zeros:
        return node
    return write.call(operator.getitem, node, (Ellipsis, slice(None, -fmt.zeros)))
