"""Example values of nodes: the fake tensor or size that Dynamo (or ``writing.py``) has stored for each node.

Sizes are ints or symbolic ints. No function here adds a guard, except :func:`made_equal`
and :func:`made_constant`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...kernels.internals.graphs import free_unbacked_symbols, is_constant_size, same_sizes, size_hint

#: The key in ``node.meta`` under which Dynamo stores the example value, and AOTAutograd reads it.
_KEY = "example_value"

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Sizes of a tensor: ints or SymInts.
Sizes = tuple[Any, ...]


def example(node: Node) -> Any:
    """The example value of a node: a fake tensor, a number, or a tuple of these.

    Raises:
        KeyError: if it has none.
    """
    return node.meta[_KEY]


def example_or_none(node: Any) -> Any:
    """The example value of a node; None if it has none, or if ``node`` is not a node."""
    return node.meta.get(_KEY) if isinstance(node, Node) else None


def has_example(node: Node) -> bool:
    """Whether a node has an example value, which may be None."""
    return _KEY in node.meta


def set_example(node: Node, value: Any) -> None:
    """Set the example value of a node. Only for ``writing.py``, which sets that of each node that it inserts."""
    node.meta[_KEY] = value


def forget_example(node: Node) -> None:
    """Delete the example value of a node."""
    node.meta.pop(_KEY, None)


def tensor_of(node: Any) -> torch.Tensor | None:
    """The fake tensor of a node; None if the node is not known to be a tensor."""
    value = example_or_none(node)
    return value if isinstance(value, torch.Tensor) else None


def shape(node: Any) -> Sizes | None:
    """The shape of a node's tensor, as ints and SymInts; None if the node is not known to be a tensor."""
    value = tensor_of(node)
    return None if value is None else tuple(plain_size(size) for size in value.shape)


def sizes_of(node: Node) -> Sizes:
    """The shape of a node's tensor, as ints and SymInts.

    Raises:
        TypeError: if the node is not known to be a tensor.
    """
    sizes = shape(node)
    if sizes is None:
        raise TypeError(f"{node} is not known to be a tensor")
    return sizes


def dtype_of(node: Any) -> torch.dtype | None:
    """The dtype of a node's tensor; None if the node is not known to be a tensor."""
    value = tensor_of(node)
    return None if value is None else value.dtype


def is_float(node: Any) -> bool:
    """Whether a node is a tensor of dtype float16, bfloat16, float32 or float64."""
    return dtype_of(node) in _FLOATS


def value_of(number: Any) -> Any:
    """A number itself, or the example value of the node that computes it."""
    return example_or_none(number) if isinstance(number, Node) else number


def plain_size(size: Any) -> Any:
    """A size, converted to an int if it is a SymInt that is known to be constant."""
    return int(size) if isinstance(size, torch.SymInt) and is_constant_size(size) else size


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal. Adds no guard."""
    return same_sizes((a,), (b,))


def made_equal(a: Any, b: Any) -> bool:
    """Whether two sizes are equal in the first call of the graph. If so, they are in all its calls, by a guard.

    For a program that takes the first ``batch`` rows of a buffer with as many: it is compiled for this batch size.
    """
    if same_size(a, b):
        return True
    numbers = all(isinstance(size, (int, torch.SymInt)) for size in (a, b))
    if not numbers or free_unbacked_symbols((a, b)) or size_hint(a) != size_hint(b):
        return False
    return bool(a == b)


def made_constant(size: Any) -> int | None:
    """A size as a constant, by a guard if it is a symbol; None if it depends on data."""
    number = size_hint(size)
    return number if made_equal(size, number) else None
