"""The operations between the product of query and key and the attention weights, each as what it means there."""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import Graph, Node

from ..context import MaskKind
from ..graph.reading import writes_to
from .products import Product


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation: the node that computes it."""

    node: Node


class Same(Step):
    """A copy, a cast, dropout of nothing."""


class View(Step):
    """All elements, in another shape or order of dimensions."""


class Tanh(Step):
    """The inner part of a soft-cap."""


class Shift(Step):
    """A number added to all scores of a query, which changes no softmax."""


@dataclasses.dataclass(frozen=True, eq=False)
class Factor(Step):
    """A product with a constant."""

    number: float


@dataclasses.dataclass(frozen=True, eq=False)
class Added(Step):
    """A mask or bias that is added, times ``sign``."""

    term: Node
    sign: float


@dataclasses.dataclass(frozen=True, eq=False)
class Filled(Step):
    """Scores replaced by ``number`` where ``condition`` says; ``kind`` is what it says."""

    condition: Node
    kind: MaskKind
    number: float


@dataclasses.dataclass(frozen=True, eq=False)
class Sinks(Step):
    """A column of sink logits beside the scores, the first (0) or the last (-1)."""

    logits: Node
    column: int


@dataclasses.dataclass(frozen=True, eq=False)
class DroppedSinks(Step):
    """The weights without the first (0) or the last (-1) column."""

    column: int


@dataclasses.dataclass(frozen=True, eq=False)
class Softmax(Step):
    """The softmax over the tokens."""

    dim: int
    dtype: torch.dtype | None


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """The way from a product of query and key to attention weights: the steps from last to first."""

    steps: tuple[Step, ...]
    product: Product

    @property
    def softmax(self) -> Softmax:
        return next(step for step in self.steps if isinstance(step, Softmax))


class Order:
    """The order of the nodes of a graph, and what was last written to a tensor before a node reads it."""

    def __init__(self, graph: Graph) -> None:
        self._index = {node: index for index, node in enumerate(graph.nodes)}

    def __getitem__(self, node: Node) -> int:
        return self._index[node]

    def value(self, node: Node, reader: Node) -> Node:
        """The operation that made the value of ``node`` that ``reader`` sees: itself, or a later one in place."""
        writers = [user for user in writes_to(node) if self[user] < self[reader]]
        return max(writers, key=lambda user: self[user], default=node)
