"""Quantize the keys and values that a prefill graph returns. Its attention still reads the dense ones.

out = attention(q, k, v, mask)                   out = attention(q, k, v, mask)
return k, v, out                            ->   start = padding tokens, from the mask
                                                 moments = query_moments(q, k, start)
                                                 mean, norm = key_statistics(k, start, norm_divisor(moments))
                                                 k4 = prefill(k, start, mean, norm, query_profile(moments, norm, 32))
                                                 v4 = prefill(v, start)
                                                 return (k4, mean, norm), v4, out
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..kernels import layout
from ..kernels.cache import ENCODED, CacheTensors
from ..kernels.formats import CacheFormat, Role, grown_capacity
from ..kernels.internals.tensors import is_traceable_wrapper_subclass
from .analysis.causal_masks import causal_mask
from .analysis.centring import may_centre
from .analysis.shared_norm import shared_norm
from .analysis.windows import dropped, format_of
from .attention.views import split_factor, view_source
from .context import AttentionMatch, CacheInput, CacheSource, CacheUse, NoMatch, PassContext, Quantized
from .emit.channels import with_zeros
from .emit.latent import rotary_part
from .emit.query import standard_query
from .emit.shown import shown_keys
from .graph.aliases import Writes
from .graph.operations import Kind
from .graph.reading import is_query, kinds, op_name
from .graph.values import dtype_of, example, same_size, shape, sizes_of, tensor_of
from .graph.writing import Writer, size_node


def quantize_prefill(gm: GraphModule, context: PassContext) -> GraphModule:
    write, changes = Writer(gm.graph), Writes(gm.graph)
    starts: dict[Node | None, Node] = {}
    behind: dict[Node, Node] = {}  # where the caches of an attention are made
    for match, (key, value) in context.uses.items():
        if key.source is CacheSource.BESIDE:
            context.rewritten.append(match)
        if not key.source.makes_cache:
            continue
        if key.returned in context.quantized and value.returned in context.quantized:  # of an earlier layer
            context.rewritten.append(match)
            continue
        if match.node not in behind:
            behind[match.node] = _last(match, changes, context).next
        with write.before(behind[match.node]):
            mask = None if key.source is CacheSource.RENEWED else _padding_mask(match, key, value, context)
            if key.source is CacheSource.RENEWED:
                start = _start_of_cache(write, key.cache)
            else:
                start = starts[mask] = starts[mask] if mask in starts else _padding_start(write, match, mask, changes)
            sides: tuple[tuple[CacheUse, Role], ...] = ((key, "key"), (value, "value"))
            for use, role in sides:
                if use.returned not in context.quantized:
                    context.quantized[use.returned] = _quantize(write, match, use, role, start, changes, context)
        context.rewritten.append(match)
    return gm


def _last(match: AttentionMatch, changes: Writes, context: PassContext) -> Node:
    """The last of an attention's output, and all keys and values that are cached with it.

    The caches are made as early as possible, so that the dense keys and values can be freed.
    """
    uses = [use for other, both in context.uses.items() if other.node is match.node for use in both]
    return max((match.node, *(use.returned for use in uses)), key=changes.order.__getitem__)


def _quantize(
    write: Writer,
    match: AttentionMatch,
    use: CacheUse,
    role: Role,
    start: Node,
    changes: Writes,
    context: PassContext,
) -> Quantized:
    dense = write.by_head(use.node, use.tokens_dim)
    value, config = example(dense), context.config
    fmt = format_of(context, role, value.shape[3], value.dtype, use.window, latent=match.latent is not None)
    if fmt.rolls:
        return _encode(write, use, with_zeros(write, dense, fmt), fmt, start, (None, None, None))
    if role == "key":
        fmt = dataclasses.replace(fmt, norm=shared_norm(dense, fmt, config, changes))
    held = with_zeros(write, dense, fmt)
    ops = torch.ops.innerq
    mean = norm = moments = profile = None
    divisor = ()
    if fmt.uses_queries:
        query = _query(write, match)
        query = None if query is None else with_zeros(write, query, fmt)
        batch, heads, _, head_dim = example(held).shape
        fresh = value.new_empty((batch, heads, 2, head_dim), dtype=torch.float32)
        moments = write.call(ops.query_moments.default, query, held, start, value=fresh)
        if query is not None:
            fresh = value.new_empty((batch, heads, head_dim), dtype=torch.float32)
            divisor = (write.call(ops.norm_divisor.default, moments, fmt.norm, value=fresh),)
    centred = role == "key" and may_centre(use.returned, context)
    if role == "key" and (centred or config.normalize_keys):
        wanted = (centred, config.normalize_keys, fmt.norm)
        key_statistics = write.call(ops.key_statistics.default, held, start, *wanted, *divisor)
        mean = write.call(operator.getitem, key_statistics, 0) if centred else None
        norm = write.call(operator.getitem, key_statistics, 1) if config.normalize_keys else None
    if moments is not None:
        fresh = example(moments).new_empty(example(moments).shape, dtype=torch.int8)
        profile = write.call(ops.query_profile.default, moments, norm, fmt.group_size, value=fresh)
    return _encode(write, use, held, fmt, start, (profile, mean, norm))


def _encode(
    write: Writer, use: CacheUse, held: Node, fmt: CacheFormat, start: Node, statistics: tuple[Node | None, ...]
) -> Quantized:
    """Quantize what the graph returns.

    Args:
        held: the keys or values that the attention reads, ``[B, H, S, D]``, with the channels that the cache holds.
        fmt: the format of the cache.
        start: the padding in front of them, ``[B]``.
        statistics: query profile, mean and norm of :data:`~kernels.cache.STATISTICS`.
    """
    profile, mean, norm = statistics
    if not same_size(count := dropped(use), 0):  # padding goes first
        start = write.method("clamp", write.call(operator.sub, start, write.number(count)), min=0)
    if use.kept is not None:
        held = with_zeros(write, write.by_head(use.kept, use.tokens_dim), fmt)
    given = () if profile is None else (profile,)
    capacity = _capacity(write, held, fmt)
    packed = write.call(torch.ops.innerq.prefill.default, held, start, mean, norm, capacity, fmt.spec, *given)
    encoded = [write.call(operator.getitem, packed, index) for index in range(len(ENCODED))]
    tensors = dataclasses.replace(CacheTensors.of_encoded(fmt, encoded), query_profile=profile, mean=mean, norm=norm)
    return Quantized(tensors, example(held).shape[2], use.tokens_dim)


def _start_of_cache(write: Writer, cache: CacheInput) -> Node:
    """``[B]`` int32: the padding that a cache has in front of its tokens."""
    state = write.call(operator.getitem, cache.tensors.state, (slice(None), 0))
    start, hidden = (write.call(operator.getitem, state, (slice(None), at)) for at in (layout.START, layout.HIDDEN))
    return write.method("clamp", write.call(operator.sub, start, hidden), min=0)


def _query(write: Writer, match: AttentionMatch) -> Node | None:
    """What of the query meets the cached keys, as ``[B, Hq, N, D]``; None if it cannot be brought into this layout."""
    try:
        query = standard_query(write, match)
    except NoMatch:
        return None
    return query if match.latent is None else rotary_part(write, match.latent, query)


def _capacity(write: Writer, node: Node, fmt: CacheFormat) -> Node | int:
    """The number of blocks to allocate; computed in the graph if the length is symbolic."""
    length = write.size(node, 2)
    capacity: Any = grown_capacity(fmt, length if isinstance(length, int) else write.traced(length))
    return capacity if isinstance(capacity, int) else capacity.node


def _padding_mask(match: AttentionMatch, key: CacheUse, value: CacheUse, context: PassContext) -> Node | None:
    """The mask of a prefill, if it can be used to find left padding; else None.

    It can if it has a column for each key and no other reader sees a key that it hides from all queries, nor did an
    earlier query: behind tokens of an earlier call the mask of a window hides those that have left it.
    """
    mask = context.standard[match].mask
    size, tokens = shape(mask), sizes_of(key.node)[key.tokens_dim]
    if size is None or len(size) != 4 or not same_size(size[3], tokens):
        return None
    if not same_size(tokens, sizes_of(context.standard[match].query)[2]) and _has_older_tokens(key.node):
        return None
    for other in context.attentions:
        if other.key is match.key or other.value is match.value:
            form = context.standard.get(other)
            if form is None or form.mask is not mask:
                return None
    inside = match.latent.nodes if match.latent is not None else frozenset()
    for other in context.attentions:
        if other.value is match.value and other.value_heads is not None:
            inside |= {*other.value_heads.nodes}
    if match.part is not None:
        inside |= {*match.part.nodes}
    attended = all(_only_attended(use.node, use, inside) for use in (key, value))
    return mask if attended and all(_only_attended(node, None, inside) for node in inside) else None


def _has_older_tokens(node: Node | None) -> bool:
    """Whether keys are put together of several tensors, of which one may hold tokens of an earlier call."""
    while node is not None and op_name(node) != "cat":
        before = [source for source in node.all_input_nodes if tensor_of(source) is not None]
        node = before[0] if len(before) == 1 else None
    return node is not None


def _only_attended(node: Node, cached: CacheUse | None = None, inside: frozenset[Node] = frozenset()) -> bool:
    """Whether only attentions read ``node``, directly or through views and repetitions that are not returned.

    Args:
        cached: the cache of which this is the node, and which may be returned.
        inside: nodes that may read it, too: those of a latent attention, or that take some of the heads, or put several
            caches together. Their readers are looked at by themselves.
    """
    for user in node.users:
        if user in inside or (cached is not None and (user.op == "output" or user is cached.kept)):
            continue
        if is_query(user) or kinds(user) & Kind.PRODUCT or op_name(user) == "sdpa":
            continue
        same = view_source(user) is node or kinds(user) & Kind.REPEATS or split_factor(user) is not None
        if not same or not _only_attended(user, None, inside):
            return False
    return True


def _padding_start(write: Writer, match: AttentionMatch, mask: Node | None, changes: Writes) -> Node:
    """``[B]`` int32: the number of leading keys that the mask hides from all queries of all heads."""
    batch = _batch(write, match.key)
    if mask is None:
        return write.method("new_zeros", _input_on_device_of(match.key), (batch,), dtype=torch.int32)
    seen = _seen(write, mask, changes)
    hidden = write.call(operator.eq, write.method("cumsum", seen, -1), 0)
    start = write.method("sum", hidden, -1, dtype=torch.int32)
    return write.method("expand", start, batch)


def _seen(write: Writer, mask: Node, changes: Writes) -> Node:
    """``[B or 1, S]``: whether a mask shows a key to any query of any head."""
    causal = causal_mask(mask, changes)
    if causal is not None and (shown := shown_keys(write, causal)) is not None:
        return shown  # a query sees itself, in any window
    visible = mask
    if dtype_of(mask) != torch.bool:
        visible = write.call(operator.gt, mask, torch.finfo(example(mask).dtype).min)
    return write.method("any", write.method("any", visible, 1), 1)


def _batch(write: Writer, key: Node) -> Node | int:
    """The number of sequences, from an input if one has it, so that what is made of it does not depend on a layer."""
    try:
        return size_node(write.graph, example(key).shape[0])
    except KeyError:
        return write.size(key, 0)


def _input_on_device_of(key: Node) -> Node:
    """A dense input on the device of ``key``, so that what is made of it does not depend on a layer; else ``key``."""
    device = example(key).device
    for node in key.graph.find_nodes(op="placeholder"):
        value = tensor_of(node)
        if value is not None and value.device == device and not is_traceable_wrapper_subclass(value):
            return node
    return key
