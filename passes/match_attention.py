"""Find the attentions of a graph. Changes nothing.

    sdpa(q, repeat(k), repeat(v), mask)                              -> AttentionMatch(q, k, v, mask, scale)
    matmul(dropout(softmax(matmul(q, k^T) * scale + mask)), v)       -> AttentionMatch(q, k, v, mask, scale)

The matcher is structural: from the node that produces the output it walks back through everything that does not change
what is computed (casts, copies, dropout that is off, repetition of heads for grouped queries), and gives up with a
reason in words at the first thing it does not know.
"""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from .context import AttentionMatch, PassContext, Reason
from .graph_utils import argument, example, op_name, same_sizes, shape, source_line


class NoMatch(Exception):
    """The reason why a place that looks like attention is none that is understood."""


def match_attention(gm: GraphModule, context: PassContext) -> GraphModule:
    for node in gm.graph.nodes:
        try:
            if op_name(node) == "sdpa":
                context.attentions.append(_match_sdpa(node))
            elif op_name(node) == "matmul" and (softmax := _softmax_behind(node.args[0])) is not None:
                context.attentions.append(_match_eager(node, softmax))
        except NoMatch as reason:
            context.reasons.append(Reason(str(reason), source_line(node)))
    return gm


# --- the fused call -------------------------------------------------------------------------------------------------


def _match_sdpa(node: Node) -> AttentionMatch:
    query, key, value = (argument(node, name) for name in ("query", "key", "value"))
    if argument(node, "dropout_p", 0.0) != 0.0:
        raise NoMatch("dropout is on")
    scale = argument(node, "scale")
    if scale is None:
        scale = 1.0 / math.sqrt(_head_dim(query))
    if not isinstance(scale, (int, float)):
        raise NoMatch("the scale of the scores is not a constant")
    is_causal = argument(node, "is_causal", False)
    if not isinstance(is_causal, bool):
        raise NoMatch("is_causal is not a constant")
    mask = argument(node, "attn_mask")
    return _checked(AttentionMatch(node, query, unrepeat(key), unrepeat(value), mask, float(scale), is_causal, "sdpa"))


# --- the spelled-out form -------------------------------------------------------------------------------------------


def _peel(node):
    """Walk back through what does not change the values: casts, copies, dropout that is off."""
    while (name := op_name(node)) in ("to", "contiguous", "dropout"):
        if name == "to" and not _is_float(node.args[0]):
            break
        if name == "dropout" and argument(node, "p", 0.5) != 0.0 and argument(node, "training", True) is not False:
            raise NoMatch("dropout is on")
        node = node.args[0]
    return node


def _softmax_behind(node) -> Node | None:
    try:
        node = _peel(node)
    except NoMatch:
        return None
    return node if op_name(node) == "softmax" else None


def _match_eager(node: Node, softmax: Node) -> AttentionMatch:
    rank = len(shape(softmax))
    if argument(softmax, "dim") not in (-1, rank - 1):
        raise NoMatch("the softmax is not over the last dimension")
    scores, mask, scale = _peel(argument(softmax, "input")), None, 1.0
    if op_name(scores) == "add":
        sides = [_peel(side) for side in scores.args[:2]]
        found = [index for index, side in enumerate(sides) if _is_scaled_product(side)]
        if len(found) != 1 or scores.kwargs:
            raise NoMatch("the scores are a sum in which the product of query and key was not found")
        mask = scores.args[1 - found[0]]
        scores = sides[found[0]]
        if not isinstance(mask, Node) or not _is_float(mask):
            raise NoMatch("what is added to the scores is not a floating-point mask")
    while op_name(scores) in ("mul", "div"):
        factor, inner = _constant_factor(scores)
        scale *= factor
        scores = _peel(inner)
    if op_name(scores) != "matmul":
        raise NoMatch("the scores are not a product of query and key")
    query, transposed = scores.args[:2]
    key = _untranspose(transposed)
    return _checked(AttentionMatch(node, query, unrepeat(key), unrepeat(node.args[1]), mask, scale, False, "eager"))


def _is_scaled_product(node) -> bool:
    while op_name(node) in ("mul", "div"):
        try:
            node = _peel(_constant_factor(node)[1])
        except NoMatch:
            return False
    return op_name(node) == "matmul"


def _constant_factor(node: Node) -> tuple[float, Node]:
    left, right = node.args[:2]
    if isinstance(right, (int, float)) and isinstance(left, Node):
        return (1.0 / right if op_name(node) == "div" else float(right)), left
    if isinstance(left, (int, float)) and isinstance(right, Node) and op_name(node) == "mul":
        return float(left), right
    raise NoMatch("the scores are scaled by something that is not a constant")


def _untranspose(node: Node) -> Node:
    """``k`` of ``k.transpose(-1, -2)`` in any spelling."""
    name, rank = op_name(node), len(shape(node) or ())
    if name == "transpose":
        dims = {argument(node, "dim0") % rank, argument(node, "dim1") % rank}
        if dims == {rank - 1, rank - 2}:
            return node.args[0]
    if name == "permute":
        dims = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        if [d % rank for d in dims] == [*range(rank - 2), rank - 1, rank - 2]:
            return node.args[0]
    raise NoMatch("the key of the score product is not a transposed [B, H, S, D] tensor")


# --- grouped-query repetition ---------------------------------------------------------------------------------------


def unrepeat(node: Node) -> Node:
    """The keys or values ``[B, H, S, D]`` behind the repetition of each head for its group of query heads."""
    while (inner := _before_repetition(node)) is not None:
        node = inner
    return node


def _before_repetition(node: Node) -> Node | None:
    """One step back through a repetition of heads, or through a copy that changes nothing; None elsewhere."""
    name = op_name(node)
    if name == "reshape":
        return _behind_expand(node)
    if name == "repeat_interleave":
        heads = argument(node, "dim") == 1 and isinstance(argument(node, "repeats"), int)
        return node.args[0] if heads else None
    if name == "to":
        return node.args[0] if example(node).dtype == example(node.args[0]).dtype else None
    return node.args[0] if name == "contiguous" else None


def _behind_expand(node: Node) -> Node | None:
    """``k`` of ``k[:, :, None].expand(B, H, G, S, D).reshape(B, H * G, S, D)``."""
    expand = node.args[0]
    if op_name(expand) != "expand":
        return None
    unsqueezed = expand.args[0]
    full = (slice(None),) * 2 + (None,)
    name = op_name(unsqueezed)
    if name == "getitem":
        index = unsqueezed.args[1]
        if not isinstance(index, tuple) or index[:3] != full or any(i not in (slice(None), ...) for i in index[3:]):
            return None
    elif name != "unsqueeze" or argument(unsqueezed, "dim") not in (2, -3):
        return None
    key = unsqueezed.args[0]
    small, wide, out = shape(key), shape(expand), shape(node)
    if len(small) != 4 or len(wide) != 5 or len(out) != 4:
        return None
    same = same_sizes(small, (*wide[:2], *wide[3:])) and same_sizes(out, (small[0], small[1] * wide[2], *small[2:]))
    return key if same else None


# --- checks ---------------------------------------------------------------------------------------------------------


def _is_float(node) -> bool:
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _head_dim(query: Node) -> int:
    head_dim = shape(query)[-1]
    if not isinstance(head_dim, int):
        raise NoMatch("head_dim is not a constant")
    return head_dim


def _checked(match: AttentionMatch) -> AttentionMatch:
    sizes = [shape(node) for node in (match.query, match.key, match.value)]
    if any(size is None or len(size) != 4 for size in sizes):
        raise NoMatch("query, key and value are not tensors of shape [batch, heads, tokens, head_dim]")
    query, key, value = sizes
    _head_dim(match.query)
    if not same_sizes((query[0], query[3]), (key[0], key[3])) or not same_sizes(key[:2], value[:2]):
        raise NoMatch("the shapes of query, key and value do not belong together")
    if not isinstance(query[1], int) or not isinstance(key[1], int) or query[1] % key[1]:
        raise NoMatch("the number of query heads is not a multiple of the number of key heads")
    return match
