"""Checks whether a tensor can be part of an attention at all, before the matcher examines it and reports reasons.

    weights = softmax(scores + mask)[..., :-1] * 1.0        elementwise operations on a softmax,
    scores = matmul(q, k^T) * scale                         which is applied to a product of two computed tensors

A tensor that passes may still not be supported, which is reported to the user. A tensor that does not pass is no
attention, and nothing is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ..graph.reading import op_name, source_of
from ..graph.values import same_size, tensor_of
from .products import is_product, product_of
from .sides import root_of


def may_be_weights(node: Node) -> bool:
    """Whether a tensor is computed elementwise from the softmax of a product of two computed tensors.

    The router of a mixture of experts is no attention: its softmax is of a product with a parameter.
    """
    softmax = _search(node, lambda n: op_name(n) == "softmax")
    return softmax is not None and leads_to_product(source_of(softmax))


def leads_to_product(node: Any) -> bool:
    """Whether ``node`` is computed elementwise from a product of two computed tensors."""
    return _search(node, is_computed_product) is not None


def is_computed_product(node: Node) -> bool:
    """Whether a node is a product of two tensors neither of which is a parameter."""
    product = product_of(node)
    return product is not None and not any(_is_parameter(operand) for operand in product.operands)


def _is_parameter(node: Node) -> bool:
    return isinstance(tensor_of(root_of(node)), torch.nn.Parameter)


def _search(node: Any, wanted: Callable[[Node], bool], limit: int = 60) -> Node | None:
    """The first node for which ``wanted`` is true, going back from ``node`` through elementwise operations."""
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
