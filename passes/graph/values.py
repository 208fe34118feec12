"""What a node computes, as far as tracing knows: the fake tensor or size that Dynamo (or ``writing.py``) noted for it.

Sizes are ints or symbols. No question asked here adds a guard to the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...kernels.internals.graphs import statically_known_true

#: Where Dynamo notes the value of a node, and AOTAutograd looks for it.
_KEY = "example_value"

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Sizes of a tensor: ints, or SymInts where they are symbols.
Sizes = tuple[Any, ...]


def example(node: Node) -> Any:
    """The fake tensor (or number) that tracing computed for a node.

    Raises:
        KeyError: if there is none.
    """
    return node.meta[_KEY]


def example_or_none(node: Any) -> Any:
    """The fake tensor (or number) of a node; None where it has none, or is no node."""
    return node.meta.get(_KEY) if isinstance(node, Node) else None


def has_example(node: Node) -> bool:
    """Whether it is known what a node computes (which may be None)."""
    return _KEY in node.meta


def set_example(node: Node, value: Any) -> None:
    """Note what a node computes. For ``writing.py``, which does so for each node that it puts in."""
    node.meta[_KEY] = value


def forget_example(node: Node) -> None:
    """Forget what a node computes, because it is another value now."""
    node.meta.pop(_KEY, None)


def tensor_of(node: Any) -> torch.Tensor | None:
    """The fake tensor of a node, None where it is not known to be a tensor."""
    value = example_or_none(node)
    return value if isinstance(value, torch.Tensor) else None


def shape(node: Any) -> Sizes | None:
    """The shape of a node's tensor, sizes as ints or SymInts; None where the node is no tensor."""
    value = tensor_of(node)
    return None if value is None else tuple(plain_size(size) for size in value.shape)


def sizes_of(node: Node) -> Sizes:
    """The shape of a node that is known to be a tensor.

    Raises:
        TypeError: if it is none.
    """
    sizes = shape(node)
    if sizes is None:
        raise TypeError(f"{node} is not known to be a tensor")
    return sizes


def dtype_of(node: Any) -> torch.dtype | None:
    """The dtype of a node's tensor, None where the node is no tensor."""
    value = tensor_of(node)
    return None if value is None else value.dtype


def is_float(node: Any) -> bool:
    """Whether a node is a tensor of a floating-point dtype that attentions are computed in."""
    return dtype_of(node) in _FLOATS


def value_of(number: Any) -> Any:
    """A number as it is, or what is known of the node that computes it."""
    return example_or_none(number) if isinstance(number, Node) else number


def plain_size(size: Any) -> Any:
    """A size, as an int where the symbol has turned out to be a number."""
    return int(size) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size


def same_sizes(a: Sizes, b: Sizes) -> bool:
    """Whether sizes are known to be equal, without adding a guard for the question."""
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal, without adding a guard for the question."""
    return same_sizes((a,), (b,))
