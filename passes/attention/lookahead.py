"""Looking ahead: does a tensor have to do with attention at all, before anything about it is a reason to report?

    weights = softmax(scores + mask)[..., :-1] * 1.0        a softmax, elementwise behind the tensor,
    scores = matmul(q, k^T) * scale                         and a product of two computed tensors behind that

What is found here may still turn out not to be understood; what is not found is none of our business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ..graph.reading import op_name, source_of
from ..graph.values import same_size, tensor_of
from .products import is_product, product_of
from .sides import source_of_all


def may_be_weights(node: Node) -> bool:
    """Whether a softmax, and a product of two computed tensors behind it, lead to a tensor, elementwise.

    The router of a mixture of experts is a softmax too, of a product with a parameter, and it is no attention.
    """
    softmax = _search(node, lambda n: op_name(n) == "softmax")
    return softmax is not None and leads_to_product(source_of(softmax))


def leads_to_product(node: Any) -> bool:
    """Whether a product of two computed tensors leads to ``node``, elementwise."""
    return _search(node, is_computed_product) is not None


def is_computed_product(node: Node) -> bool:
    """Whether a node is a product of two tensors, none of which is a parameter."""
    product = product_of(node)
    return product is not None and not any(_is_parameter(operand) for operand in product.operands)


def _is_parameter(node: Node) -> bool:
    return isinstance(tensor_of(source_of_all(node)), torch.nn.Parameter)


def _search(node: Any, wanted: Callable[[Node], bool], limit: int = 60) -> Node | None:
    """The first node that is ``wanted``, backwards from ``node`` through tensors with as many elements."""
    pending, seen = [node], set()
    while pending and len(seen) < limit:
        node = pending.pop(0)
        if not isinstance(node, Node) or node in seen or node.op in ("placeholder", "get_attr"):
            continue
        seen.add(node)
        if wanted(node):
            return node
        value = tensor_of(node)
        if is_product(node) or value is None:
            continue
        sliced = op_name(node) in ("cat", "getitem")
        for source in node.all_input_nodes:
            other = tensor_of(source)
            if other is not None and (sliced or same_size(other.numel(), value.numel())):
                pending.append(source)
    return None
