"""Quantized caches and buffers among the inputs of a graph, and where an attention gets its keys and values from."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import torch
from torch.fx import Node

from ...kernels.cache import CacheTensors
from ...kernels.formats import CacheFormat


@dataclasses.dataclass(eq=False)
class CacheInput:
    """A quantized cache of keys or of values among the inputs of a graph.

    Attributes:
        tensors: the placeholders of its inner tensors.
    """

    tensors: CacheTensors[Node]

    @property
    def format(self) -> CacheFormat:
        return self.tensors.format


@dataclasses.dataclass(eq=False)
class ProgramCache(CacheInput):
    """A quantized cache that is an input of the program (unlike a shadow).

    Attributes:
        placeholder: its original placeholder; `plan_outputs` erases it once nothing reads it any more.
        index: its index among the original inputs.
        tokens_dim: 2 if its shape is ``[B, H, S, D]``, 1 if it is ``[B, S, H, D]``.
    """

    placeholder: Node
    index: int
    tokens_dim: int


@dataclasses.dataclass(frozen=True, eq=False)
class BufferUse:
    """A preallocated buffer that the graph writes in place and an attention reads as keys or values.

    Attributes:
        buffer: its placeholder.
        dims: the dimensions of the buffer that are batch, head, token and channel.
        new: the tokens that are written, in the buffer's order of dimensions.
        write: the node that writes them.
        position: the position of the first of them: an int, the node of a symbolic int, or the node of a tensor whose
            first element it is; None if the buffer rolls.
        count: the number of tokens that are written; a symbol only for an ``InnerQBuffer``.
        whole: False if the attention reads the buffer up to the last token that is written, without a mask or with one
            for these tokens. True if it reads all of it, or up to an end that is not known to be that of what is
            written, so that the mask has to hide positions not yet written.
        consecutive: False if the positions are given by a tensor that is not known to hold consecutive numbers.
        rolls: True if new tokens are written to the end of the full buffer, and push the oldest ones out.
        extra: how many of the latter the attention reads in front of the buffer's own tokens.
    """

    buffer: Node
    dims: tuple[int, int, int, int]
    new: Node
    write: Node
    position: Any
    count: int | torch.SymInt
    whole: bool
    consecutive: bool
    rolls: bool = False
    extra: int = 0

    @property
    def shadow(self) -> str:
        """The attribute of the buffer that holds its shadow. One that rolls counts its tokens otherwise."""
        return "_innerq_rolling_shadow" if self.rolls else "_innerq_shadow"


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowInput:
    """The quantized shadow of a key and a value buffer: inputs that the backend adds to the graph.

    Attributes:
        key, value: the shadows.
        key_use, value_use: the buffers that they copy, and how these are written.
    """

    key: CacheInput
    value: CacheInput
    key_use: BufferUse
    value_use: BufferUse


class CacheSource(enum.Enum):
    """Where the keys or values of an attention come from. The value describes it in messages."""

    APPENDED = "a quantized cache with new tokens appended"
    RENEWED = "the cache of a window with so many new tokens that it is made anew"
    READ = "a quantized cache without new tokens"
    BESIDE = "a quantized cache without new tokens, beside another cache that is made in this graph"
    BUFFER = "a buffer that is written in place"
    FRESH = "computed in this graph and returned by it"

    @property
    def stays_dense(self) -> bool:
        """Whether the attention reads dense keys and values, also those of a cache, which is dequantized for it."""
        return self in (CacheSource.FRESH, CacheSource.RENEWED, CacheSource.BESIDE)

    @property
    def makes_cache(self) -> bool:
        """Whether the keys and values are quantized as they leave the graph."""
        return self in (CacheSource.FRESH, CacheSource.RENEWED)


@dataclasses.dataclass(frozen=True, eq=False)
class CacheUse:
    """Where an attention gets its keys or its values from.

    Attributes:
        source: where they come from.
        node: the keys or values, ``[B, H, S, D]`` or ``[B, S, H, D]``.
        tokens_dim: the dimension of ``node`` that counts tokens, 2 or 1.
        of_cache: the quantized cache if ``source`` is APPENDED, RENEWED, READ or BESIDE, else None.
        of_buffer: how the buffer is written and read if ``source`` is BUFFER, else None.
        new_tokens: the appended tokens, in the layout of ``node``, if ``source`` is APPENDED, else None.
        kept: the last tokens of ``node``, which the graph returns in its place; None if it returns all.
        seen: the last tokens of ``node``, which are what the attention reads; None if it reads all.
        window: how many tokens the program keeps at most, if that is a constant, else None.
    """

    source: CacheSource
    node: Node
    tokens_dim: int = 2
    of_cache: ProgramCache | None = None
    of_buffer: BufferUse | None = None
    new_tokens: Node | None = None
    kept: Node | None = None
    seen: Node | None = None
    window: int | None = None

    @property
    def returned(self) -> Node:
        """What the graph returns as the cache."""
        return self.kept or self.node

    @property
    def cache(self) -> ProgramCache:
        """``of_cache``, which must not be None."""
        assert self.of_cache is not None, self.source
        return self.of_cache

    @property
    def buffer(self) -> BufferUse:
        """``of_buffer``, which must not be None."""
        assert self.of_buffer is not None, self.source
        return self.of_buffer

    @property
    def new(self) -> Node:
        """``new_tokens``, which must not be None."""
        assert self.new_tokens is not None, self.source
        return self.new_tokens


def wrong_roles(key: CacheInput, value: CacheInput) -> str | None:
    """Why two caches cannot be read as keys and values, in this order; None if they can."""
    if key.format.role == "key" and value.format.role == "value":
        return None
    return "a value cache is read as keys, or a key cache as values"
