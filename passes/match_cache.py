"""For each attention, find where its keys and values come from, and whether a cache is behind them. Changes nothing.

keys = cat([past, k], dim=2)      past: an InnerQTensor     -> append: rewritten by `rewrite_decode` (dim=1 where
                                                                  caches are [B, S, H, D])
keys = past                                                 -> read
keys = k, or cat([empty, k])      returned by the graph     -> fresh: quantized by `quantize_prefill`
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .analysis.buffer_writes import NoBuffer, is_preallocated
from .analysis.buffers import buffer_use, is_written
from .context.context import CacheUse, PassContext
from .graph.aliases import Writes, possible_views
from .graph.reading import is_output, op_name, read
from .graph.values import shape

_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")


def match_cache(gm: GraphModule, context: PassContext) -> GraphModule:
    changes = Writes(gm.graph)
    for match in context.attentions:
        sides = zip((match.key, match.value), match.tokens_dims, strict=True)
        key, value = (_use(node, tokens_dim, changes, context) for node, tokens_dim in sides)
        for side, use in (("keys", key), ("values", value)):
            if isinstance(use, str):
                context.refuse(match, f"{side}: {use}")
                break
        else:
            if key.node is value.node:
                context.refuse(match, "keys and values are the same tensor")
            elif key.kind != value.kind:
                context.refuse(match, f"keys are {key.kind} and values are {value.kind}")
            else:
                context.uses[match] = (key, value)
    return gm


def _use(node: Node, tokens_dim: int, changes: Writes, context: PassContext) -> CacheUse | str:
    if node in context.caches and not is_preallocated(node):
        return CacheUse("read", node, tokens_dim, cache=context.caches[node])
    call = read(node)
    if call is not None and call.name == "cat":
        tensors = call["tensors"]
        past = tensors[0] if isinstance(tensors, (list, tuple)) else None
        if past in context.caches and not is_preallocated(past):
            cache = context.caches[past]
            if len(tensors) != 2 or call["dim"] not in (tokens_dim, tokens_dim - 4):
                return "the quantized cache is concatenated in a form that is not an append along the tokens"
            if len([user for user in past.users if op_name(user) == "cat"]) != 1:
                return "the quantized cache is appended to in two places"
            if tensors[1] in context.caches or tensors[1] is past:
                return "a quantized cache is appended to a quantized cache"
            if changes.of(node):
                return "they are changed in place after they were appended to the quantized cache"
            return CacheUse("append", node, tokens_dim, cache=cache, new=tensors[1])
    try:
        if (buffer := buffer_use(node, tokens_dim, changes)) is not None:
            return CacheUse("buffer", node, tokens_dim, buffer=buffer)
    except NoBuffer as reason:
        return str(reason)
    if len(shape(node)) == 4 and not is_output(node) and _computed_from_a_cache(node):
        return (
            "they are computed in every step from what is cached, as from the latent of MLA or by a rotation behind "
            "the cache"
        )
    if is_written(node) or changes.after(node, node):
        return "they are written in place in this graph, as a buffer is; graphs that read it later will follow it"
    if len(shape(node)) == 4 and is_output(node):
        return CacheUse("fresh", node, tokens_dim)
    if any(op_name(user) == "getitem" and is_output(user) for user in node.users):
        return "only a part of them is kept as a cache, as with a sliding window"
    return "they neither come from a quantized cache nor leave the graph as they are, so there is no cache to quantize"


def _computed_from_a_cache(node: Node) -> bool:
    """Whether keys or values are made of tensors that leave the graph as a cache does, in the layer itself.

    Written parts of a new tensor count as what it is made of. Behind an attention, or any other product of two
    tensors, another layer begins.
    """
    seen: set[Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen or shape(current) is None or op_name(current) in ("sdpa", "softmax", *_PRODUCTS):
            continue
        seen.add(current)
        if current is not node and is_output(current) and len(shape(current)) in (3, 4) and op_name(current) == "cat":
            return True
        pending += current.all_input_nodes
        for view in possible_views(current) if current.target == "new_empty" else ():
            pending += [source for user in view.users if user.target == "copy_" for source in user.all_input_nodes]
    return False
