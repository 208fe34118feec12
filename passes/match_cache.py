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
from .context import CacheSource, CacheUse, PassContext
from .graph.aliases import Writes, possible_views
from .graph.operations import Kind
from .graph.reading import called_name, is_output, kinds, op_name, read
from .graph.values import shape, sizes_of


def match_cache(gm: GraphModule, context: PassContext) -> GraphModule:
    changes = Writes(gm.graph)
    for match in context.attentions:
        sides = zip((match.key, match.value), match.tokens_dims, strict=True)
        key, value = (_use(node, tokens_dim, changes, context) for node, tokens_dim in sides)
        if isinstance(key, str):
            context.refuse(match, f"keys: {key}")
        elif isinstance(value, str):
            context.refuse(match, f"values: {value}")
        elif key.node is value.node:
            context.refuse(match, "keys and values are the same tensor")
        elif key.source != value.source:
            context.refuse(match, f"keys are {key.source.value}, and values are {value.source.value}")
        else:
            context.uses[match] = (key, value)
    return gm


def _use(node: Node, tokens_dim: int, changes: Writes, context: PassContext) -> CacheUse | str:
    if node in context.caches and not is_preallocated(node):
        return CacheUse(CacheSource.READ, node, tokens_dim, of_cache=context.caches[node])
    call = read(node)
    if call is not None and call.name == "cat" and isinstance(call["tensors"], (list, tuple)) and call["tensors"]:
        past, *new = call["tensors"]
        if past in context.caches and not is_preallocated(past):
            if len(new) != 1 or call["dim"] not in (tokens_dim, tokens_dim - 4):
                return "the quantized cache is concatenated in a form that is not an append along the tokens"
            if len([user for user in past.users if op_name(user) == "cat"]) != 1:
                return "the quantized cache is appended to in two places"
            if new[0] in context.caches or new[0] is past:
                return "a quantized cache is appended to a quantized cache"
            if changes.of(node):
                return "they are changed in place after they were appended to the quantized cache"
            cache = context.caches[past]
            return CacheUse(CacheSource.APPENDED, node, tokens_dim, of_cache=cache, new_tokens=new[0])
    try:
        if (buffer := buffer_use(node, tokens_dim, changes)) is not None:
            return CacheUse(CacheSource.BUFFER, node, tokens_dim, of_buffer=buffer)
    except NoBuffer as reason:
        return str(reason)
    rank = len(sizes_of(node))
    if rank == 4 and not is_output(node) and _computed_from_a_cache(node):
        return (
            "they are computed in every step from what is cached, as from the latent of MLA or by a rotation behind "
            "the cache"
        )
    if is_written(node) or changes.after(node, node):
        return "they are written in place in this graph, as a buffer is; graphs that read it later will follow it"
    if rank == 4 and is_output(node):
        return CacheUse(CacheSource.FRESH, node, tokens_dim)
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
        name, sizes = op_name(current), shape(current)
        if current in seen or sizes is None or name in ("sdpa", "softmax") or kinds(current) & Kind.PRODUCT:
            continue
        seen.add(current)
        if current is not node and is_output(current) and len(sizes) in (3, 4) and name == "cat":
            return True
        pending += current.all_input_nodes
        for view in possible_views(current) if called_name(current) == "new_empty" else ():
            pending += [source for user in view.users if op_name(user) == "copy" for source in user.all_input_nodes]
    return False
