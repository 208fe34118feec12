"""The operations between the product of query and key and the attention weights, by their role in an attention."""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import Graph, Node

from ..context import MaskKind
from ..graph.reading import writes_to
from .products import Product


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation. ``node`` computes it."""

    node: Node


class Same(Step):
    """A copy, a cast or inactive dropout."""


class View(Step):
    """A view or copy with another shape or order of dimensions."""


class Tanh(Step):
    """The tanh of a softcap."""


class Shift(Step):
    """An addition of one number to all scores of a query. It does not change the softmax."""


@dataclasses.dataclass(frozen=True, eq=False)
class Factor(Step):
    """A multiplication by the constant ``number``."""

    number: float


@dataclasses.dataclass(frozen=True, eq=False)
class Added(Step):
    """An addition of the mask or bias ``term``, multiplied by ``sign``."""

    term: Node
    sign: float


@dataclasses.dataclass(frozen=True, eq=False)
class Filled(Step):
    """A replacement of scores by ``number``; ``kind`` says whether ``condition`` is True for kept or replaced ones."""

    condition: Node
    kind: MaskKind
    number: float


@dataclasses.dataclass(frozen=True, eq=False)
class Zeroed(Step):
    """A replacement of weights by zero; ``kind`` says whether ``condition`` is True for kept or replaced ones."""

    condition: Node
    kind: MaskKind


@dataclasses.dataclass(frozen=True, eq=False)
class Sinks(Step):
    """A concatenation with a column of sink logits, as the first (0) or the last (-1) column."""

    logits: Node
    column: int


@dataclasses.dataclass(frozen=True, eq=False)
class DroppedSinks(Step):
    """A slice that drops the first (0) or the last (-1) column of the weights."""

    column: int


@dataclasses.dataclass(frozen=True, eq=False)
class Softmax(Step):
    """The softmax over the tokens."""

    dim: int
    dtype: torch.dtype | None


@dataclasses.dataclass(frozen=True, eq=False)
class ScorePath:
    """The operations between the product of query and key and the attention weights.

    Attributes:
        steps: the operations, from last to first.
        product: the product of query and key.
    """

    steps: tuple[Step, ...]
    product: Product

    @property
    def softmax(self) -> Softmax:
        return next(step for step in self.steps if isinstance(step, Softmax))


class Order:
    """The order of the nodes of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._index = {node: index for index, node in enumerate(graph.nodes)}

    def __getitem__(self, node: Node) -> int:
        return self._index[node]

    def value(self, node: Node, reader: Node) -> Node:
        """The node that computed the value of ``node`` that ``reader`` reads: the last in-place write, or ``node``."""
        writers = [user for user in writes_to(node) if self[user] < self[reader]]
        return max(writers, key=lambda user: self[user], default=node)
