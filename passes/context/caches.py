"""Quantized caches and buffers among the inputs of a graph, and how an attention comes by its keys and values."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from torch.fx import Node

from ...kernels.cache import CacheTensors
from ...kernels.formats import CacheFormat


@dataclasses.dataclass(eq=False)
class CacheInput:
    """One side of a quantized cache among the inputs of a graph.

    Attributes:
        tensors: the placeholders of its inner tensors.
    """

    tensors: CacheTensors[Node]

    @property
    def format(self) -> CacheFormat:
        return self.tensors.format


@dataclasses.dataclass(eq=False)
class ProgramCache(CacheInput):
    """One that the program knows, not a shadow.

    Attributes:
        placeholder: its own placeholder, which is there until all that reads it has been rewritten.
        index: its position among the original inputs.
        tokens_dim: 2 where the program keeps it as ``[B, H, S, D]``, 1 where it keeps it as ``[B, S, H, D]``.
    """

    placeholder: Node
    index: int
    tokens_dim: int


@dataclasses.dataclass(frozen=True, eq=False)
class BufferUse:
    """A preallocated buffer that is written in place, behind the keys (or values) of an attention.

    Attributes:
        buffer: its placeholder.
        dims: for each of batch, head, token, channel, which dimension of the buffer it is.
        new: the tokens that are written, in the buffer's order of dimensions.
        write: the node that writes them.
        position: where the first of them goes: an int, a SymInt's node, or the node of a tensor whose first element
            it is.
        count: how many there are.
        whole: True where the attention reads the buffer to its end, so that only the mask hides what is not written.
        consecutive: False where the positions are a tensor that is not known to hold numbers that follow one another.
    """

    buffer: Node
    dims: tuple[int, int, int, int]
    new: Node
    write: Node
    position: Any
    count: int
    whole: bool
    consecutive: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowInput:
    """The quantized shadow of a pair of buffers, an input that the backend adds to the graph.

    Attributes:
        key, value: the shadow of either.
        key_use, value_use: the buffers that it follows, and how they are written.
    """

    key: CacheInput
    value: CacheInput
    key_use: BufferUse
    value_use: BufferUse


class CacheSource(enum.Enum):
    """Where the keys (or values) of an attention come from; the value says it in words."""

    APPENDED = "a quantized cache and the new tokens behind it"
    READ = "a quantized cache as it is"
    BUFFER = "a buffer that is written in place"
    FRESH = "computed in this graph and returned by it"


@dataclasses.dataclass(frozen=True, eq=False)
class CacheUse:
    """How an attention comes by its keys (or values).

    Attributes:
        source: where they come from.
        node: what the attention reads, ``[B, H, S, D]`` or ``[B, S, H, D]``.
        tokens_dim: the dimension of ``node`` that the tokens are along, 2 or 1.
        of_cache: the quantized cache, where ``source`` is APPENDED or READ.
        of_buffer: how the buffer is written and read, where ``source`` is BUFFER.
        new_tokens: the tokens behind the cache in the layout of ``node``, where ``source`` is APPENDED.
    """

    source: CacheSource
    node: Node
    tokens_dim: int = 2
    of_cache: ProgramCache | None = None
    of_buffer: BufferUse | None = None
    new_tokens: Node | None = None

    @property
    def cache(self) -> ProgramCache:
        """The quantized cache of a use that has one."""
        assert self.of_cache is not None, self.source
        return self.of_cache

    @property
    def buffer(self) -> BufferUse:
        """The buffer of a use that has one."""
        assert self.of_buffer is not None, self.source
        return self.of_buffer

    @property
    def new(self) -> Node:
        """The new tokens of a use that has some."""
        assert self.new_tokens is not None, self.source
        return self.new_tokens


def wrong_roles(key: CacheInput, value: CacheInput) -> str | None:
    """Why a cache of keys and one of values are not what they are read as, or None."""
    if key.format.role == "key" and value.format.role == "value":
        return None
    return "a cache of values is read as keys, or a cache of keys as values"
