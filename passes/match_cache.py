"""Find where the keys and values of each attention come from. Does not change the graph.

keys = cat([past, k], dim=2)      past: an InnerQTensor     -> APPENDED, rewritten by `rewrite_decode` (dim=1 if
                                                               caches are [B, S, H, D])
     ... many tokens to a short sliding window              -> RENEWED, quantized by `quantize_prefill`
keys = past                       past: an InnerQTensor     -> READ, rewritten by `rewrite_decode`
keys = buffer.index_copy_(...)    buffer: an input          -> BUFFER, rewritten by `rewrite_buffer`
     ... buffer.copy_(...) of the last tokens               -> BUFFER, too
keys = k, or cat([empty, k])      returned by the graph     -> FRESH, quantized by `quantize_prefill`

A new cache is made of keys and values only if no attention reads them that is not recognized, or that reads them with
other values. One that a later pass leaves as it is still reads a cache that is quantized, and dequantized for it.

Of keys and values of a sliding window the graph returns the last tokens, and an attention may read the last tokens.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from ..kernels.formats import Role, obstacle
from .analysis.buffer_writes import NoBuffer, is_preallocated
from .analysis.buffers import buffer_use, is_written
from .analysis.other_readers import OTHER_PAIR, is_carried_to, shared_in_part
from .analysis.rolled_buffers import fills_buffer, rolled_use
from .analysis.several_caches import leave_incomplete
from .analysis.windows import fits_ring, kept_part, last_tokens
from .attention.sides import root_of
from .context import AttentionMatch, CacheSource, CacheUse, PassContext
from .graph.aliases import Writes, possible_views
from .graph.operations import Kind
from .graph.reading import Call, called_name, is_output, kinds, op_name, read
from .graph.values import example, shape, sizes_of

#: A quantized copy of a buffer has to be told when the program changes the buffer in another way.
_UNCOUNTED = (
    "they are a buffer made under torch.inference_mode(), where tensors do not count what is written to them, so that "
    "a quantized copy could not follow it; make it outside, or use torch.no_grad()"
)

_UNMATCHED = (
    "an attention that is not rewritten reads the same keys or values, which would be dequantized for it in every step"
)


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
            context.refuse(match, f"keys are {key.source.value}, but values are {value.source.value}")
        elif reason := _obstacle(match, key, "key") or _obstacle(match, value, "value"):
            context.refuse(match, reason)
        else:
            context.uses[match] = (key, value)
    _leave_shared(context)
    leave_incomplete(context)
    return gm


def _leave_shared(context: PassContext) -> None:
    """Leave keys and values dense that a later step would dequantize, for an attention that it cannot rewrite."""
    fresh = {match: uses for match, uses in context.uses.items() if uses[0].source is CacheSource.FRESH}
    reasons = dict.fromkeys(shared_in_part(fresh), OTHER_PAIR)
    for match, uses in fresh.items():
        if any(is_carried_to(use.node, context.unmatched) for use in uses):
            reasons[match] = _UNMATCHED
    for match, reason in reasons.items():
        del context.uses[match]
        context.refuse(match, reason)


def _obstacle(match: AttentionMatch, use: CacheUse, role: Role) -> str:
    """Why keys or values cannot be quantized, whatever the config; empty if they can be, or are already."""
    if use.of_cache is not None or (use.of_buffer is not None and is_preallocated(use.of_buffer.buffer)):
        return ""
    dense = example(use.node)
    return obstacle(role, dense.shape[-1], dense.dtype, latent=match.latent is not None)


def _use(node: Node, tokens_dim: int, changes: Writes, context: PassContext) -> CacheUse | str:
    if node in context.caches and not is_preallocated(node):
        return CacheUse(CacheSource.READ, node, tokens_dim, of_cache=context.caches[node])
    part = last_tokens(node, tokens_dim)
    seen = None
    if part is not None and op_name(part.source) == "cat" and (not is_output(node) or _appends(part.source, context)):
        seen, node = node, part.source
    call = read(node)
    if call is not None and call.name == "cat" and isinstance(call["tensors"], (list, tuple)) and call["tensors"]:
        past, *new = call["tensors"]
        if past in context.caches and not is_preallocated(past):
            if len(new) != 1 or call["dim"] not in (tokens_dim, tokens_dim - 4):
                return "the cat with the quantized cache does not append one tensor of new tokens to it"
            if len([user for user in past.users if op_name(user) == "cat"]) != 1:
                return "the quantized cache is appended to more than once"
            if new[0] in context.caches or new[0] is past:
                return "a quantized cache is appended to a quantized cache"
            if changes.of(node):
                return "they are changed in place after they were appended to the quantized cache"
            cache, kept = context.caches[past], kept_part(node, tokens_dim)
            source = CacheSource.APPENDED
            if cache.format.rolls and not fits_ring(cache.format, kept, sizes_of(new[0])[tokens_dim]):
                if kept is None or kept.window is None:
                    return "the program keeps more of a cache than the short sliding window that it kept before"
                source = CacheSource.RENEWED
            parts = {"kept": kept and kept.node, "seen": seen, "window": kept and kept.window}
            return CacheUse(source, node, tokens_dim, of_cache=cache, new_tokens=new[0], **parts)
    try:
        buffer = rolled_use(node, tokens_dim, changes) or buffer_use(node, tokens_dim, changes)
        if buffer is not None and buffer.buffer.name in context.uncounted and not is_preallocated(buffer.buffer):
            return _UNCOUNTED
        if buffer is not None:
            return CacheUse(CacheSource.BUFFER, node, tokens_dim, of_buffer=buffer)
    except NoBuffer as reason:
        return str(reason)
    rank, kept = len(sizes_of(node)), kept_part(node, tokens_dim)
    if rank == 4 and kept is None and not is_output(node) and _is_put_together(call, tokens_dim, context):
        return (
            "they are put together in every step, from a cache and other tokens or from two caches; a rewritten "
            "attention reads one cache"
        )
    if rank == 4 and kept is None and not is_output(node) and _computed_from_a_cache(node):
        return (
            "they are computed in every step from another cached tensor, such as the latent of MLA or keys before "
            "their rotary embedding"
        )
    if is_written(node) or changes.after(node, node):
        return "they are a buffer that this graph writes in place; graphs that read it later will use a quantized copy"
    if rank == 4 and is_output(node):
        window = part.window if part is not None and seen is None else None
        return CacheUse(CacheSource.FRESH, node, tokens_dim, window=window)
    if rank == 4 and kept is not None:
        return CacheUse(CacheSource.FRESH, node, tokens_dim, kept=kept.node, seen=seen, window=kept.window)
    if fills_buffer(node, tokens_dim):
        return "their last tokens are copied to a buffer; graphs that read it later will use a quantized copy"
    if any(op_name(user) == "getitem" and is_output(user) for user in node.users):
        return "only a part of them is returned as a cache, as with a sliding window"
    return "they neither come from a quantized cache nor are returned by the graph, so there is no cache to quantize"


def _appends(cat: Node, context: PassContext) -> bool:
    """Whether a ``cat`` begins with a quantized cache."""
    call = read(cat)
    tensors = () if call is None else call["tensors"]
    return isinstance(tensors, (list, tuple)) and bool(tensors) and tensors[0] in context.caches


def _is_put_together(call: Call | None, tokens_dim: int, context: PassContext) -> bool:
    """Whether a call is a ``cat`` of tokens with a cache, or with tokens all or the last of which are returned."""
    if call is None or call.name != "cat" or call["dim"] not in (tokens_dim, tokens_dim - 4):
        return False
    tensors = call["tensors"]
    if not isinstance(tensors, (list, tuple)):
        return False
    roots = [root_of(tensor) for tensor in tensors if isinstance(tensor, Node)]
    cached = (root for root in roots if len(shape(root) or ()) == 4)
    return any(root in context.caches or is_output(root) or kept_part(root, tokens_dim) is not None for root in cached)


def _computed_from_a_cache(node: Node) -> bool:
    """Whether keys or values are computed from a tensor of the same layer that the graph returns as a cache.

    The search goes back through inputs of each node, and through what is copied into parts of a new tensor. It stops at
    attentions and other products of two tensors, because these belong to an earlier operation of the layer.
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
