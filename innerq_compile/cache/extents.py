"""Which tokens of a storage somebody can still read."""

from __future__ import annotations


class Extent:
    """How many tokens of a storage one tensor shows.

    It lives as long as the tensor. The storage has weak references to the extents of all its tensors.

    Attributes:
        length: the number of tokens, padding included.
    """

    __slots__ = ("__weakref__", "length")

    def __init__(self, length: int) -> None:
        self.length = length
