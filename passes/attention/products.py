"""One representation of matmul, @, bmm, baddbmm and einsum: a label for each dimension of operands and result.

    torch.matmul(q, k.transpose(2, 3))           q: (1, 0, m, c)   k^T: (1, 0, c, n)   -> (1, 0, m, n)
    torch.einsum("bqhd,bkhd->bhqk", q, k)        q: (b, q, h, d)   k: (b, k, h, d)     -> (b, h, q, k)

Dimensions with the same label are matched; one of size 1 broadcasts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import Node

from ..context import NoMatch
from ..graph.operations import Kind
from ..graph.reading import Call, kinds, read
from ..graph.values import same_sizes, shape, sizes_of
from .axes import Axis, Dims, axes_of_size


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A product of two tensors, summed over the labels that the result does not have.

    Attributes:
        node: the node that computes it.
        operands: the two factors.
        labels: the labels of their dimensions.
        out: the labels of the result's dimensions.
        alpha: a constant factor.
        added, beta: a tensor that is added (``baddbmm``), and its factor.
    """

    node: Node
    operands: tuple[Node, Node]
    labels: tuple[tuple[Any, ...], tuple[Any, ...]]
    out: tuple[Any, ...]
    alpha: float = 1.0
    added: Node | None = None
    beta: float = 1.0

    def summed(self) -> set[Any]:
        """The labels that the product sums over."""
        return {label for labels in self.labels for label in labels if label not in self.out}

    def axes(self) -> dict[Any, tuple[Axis, ...]]:
        """A new axis for each label."""
        sizes: dict[Any, Any] = {}
        for node, labels in zip(self.operands, self.labels, strict=True):
            for label, size in zip(labels, sizes_of(node), strict=True):
                if label not in sizes or same_sizes((sizes[label],), (1,)):
                    sizes[label] = size
                elif not same_sizes((size,), (1,)) and not same_sizes((size,), (sizes[label],)):
                    raise NoMatch("the shapes of query, key and value do not match")
        return {label: axes_of_size(size) for label, size in sizes.items()}


def is_product(node: Any) -> bool:
    """Whether a node is a product of tensors, in any spelling."""
    return bool(kinds(node) & Kind.PRODUCT)


def product_of(node: Any) -> Product | None:
    """The product that a node computes; None if it computes none, or one of more or fewer than two tensors."""
    call = read(node)
    if call is None or call.in_place:
        return None
    if call.name in ("matmul", "bmm"):
        return _matmul(node, call["input"], call["other" if "other" in call.arguments else "mat2"])
    if call.name == "baddbmm":
        alpha, beta = call["alpha"], call["beta"]
        if not isinstance(alpha, (int, float)) or not isinstance(beta, (int, float)):
            return None
        plain = _matmul(node, call["batch1"], call["batch2"])
        if plain is None:
            return None
        # beta=0 ignores the added tensor, which may be uninitialized
        added = call.source() if beta != 0 else None
        return dataclasses.replace(plain, alpha=float(alpha), added=added, beta=float(beta))
    return _einsum(node, call) if call.name == "einsum" else None


def _matmul(node: Node, left: Any, right: Any) -> Product | None:
    a, b = shape(left), shape(right)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = max(len(a), len(b)) - 2
    lead = tuple(range(batch - 1, -1, -1))  # numbered from the right, as broadcasting aligns dimensions
    labels = ((*lead[batch - len(a) + 2 :], "m", "c"), (*lead[batch - len(b) + 2 :], "c", "n"))
    return Product(node, (left, right), labels, (*lead, "m", "n"))


def _einsum(node: Node, call: Call) -> Product | None:
    equation, operands = call["equation"], call["operands"]
    ranks = [len(sizes) for sizes in map(shape, operands) if sizes is not None]
    if not isinstance(equation, str) or len(operands) != 2 or len(ranks) != 2:
        return None
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != 2:
        return None
    left, right = (_letters(term, rank) for term, rank in zip(terms, ranks, strict=True))
    ellipsis = max((label for label in (*left, *right) if isinstance(label, int)), default=-1)
    if any(len(set(term)) != len(term) for term in (left, right)):
        return None
    out_labels = _letters(out, len(out.replace("...", "")) + ellipsis + 1)
    return Product(node, (operands[0], operands[1]), (left, right), out_labels)


def _letters(term: str, rank: int) -> tuple[Any, ...]:
    if "..." not in term:
        return tuple(term)
    before, after = term.split("...")
    count = rank - len(before) - len(after)
    return (*before, *range(count - 1, -1, -1), *after)


def dims_of(labels: tuple[Any, ...], axes: dict[Any, tuple[Axis, ...]]) -> Dims:
    """The dimensions of a tensor with these labels."""
    return tuple(axes[label] for label in labels)
