"""Cache write and attention of a decode step, on the quantized cache.

    keys = cat([past_k, k], 2)                  append_(past_k..., past_v..., k, v)
    values = cat([past_v, v], 2)            ->  opened = open_from(mask, past_k_state, N)      once for all layers
    out = attention(q, keys, values, mask)      out = decode_attention(q, past_k..., past_v..., mask, opened)
    return keys, values                         return (the same caches, longer)

Query and key are what the program has: `fold_key_norm` puts the key normalization on them. ``open_from`` finds out what
of a mask hides nothing, so that no layer reads it there, and fails loudly where a mask shows tokens in front of the
first that the cache stores.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .context import Appended, AttentionMatch, CacheSource, CacheUse, PassContext, wrong_roles
from .emit.attention import attend
from .emit.read_dequantized import early_reader
from .emit.writes import append
from .graph.aliases import Writes
from .graph.values import dtype_of, same_size, sizes_of
from .graph.writing import Writer


def rewrite_decode(gm: GraphModule, context: PassContext) -> GraphModule:
    write = Writer(gm.graph)
    written: set[tuple[Node, Node]] = set()
    changes = Writes(gm.graph)
    growing = {use.cache for uses in context.uses.values() for use in uses if use.source is CacheSource.APPENDED}
    for match, (key, value) in context.uses.items():
        if key.source not in (CacheSource.APPENDED, CacheSource.READ):
            continue
        grows = key.source is CacheSource.APPENDED
        reason = _obstacle(match, key, value, changes)
        if reason is None and not grows and (key.cache in growing or value.cache in growing):
            reason = "it reads a cache without the tokens that the same graph appends to it"
        pair = (key.node, value.node)
        last = max(pair, key=changes.order.__getitem__)
        if reason is None and grows and not context.config.rewrite:
            reason = early_reader(match, context.standard[match], last, changes.order)
        if reason is None and any(bool({*pair} & {*other}) and pair != other for other in written):
            reason = "keys or values are paired with others in another attention"
        if reason is not None:
            context.refuse(match, reason)
            continue
        if grows and pair not in written:
            written.add(pair)
            with write.after(last):
                new_key, new_value = (write.by_head(use.new, use.tokens_dim) for use in (key, value))
                append(write, context, match, key.cache, value.cache, new_key, new_value)
            for use in (key, value):
                context.appended[use.node] = Appended(use.cache, sizes_of(use.new)[use.tokens_dim])
        attend(write, context, match, key.cache, value.cache, changes)
        context.rewritten.append(match)
    write.erase_dead([context.standard[match].node for match in context.rewritten])
    return gm


def _obstacle(match: AttentionMatch, key: CacheUse, value: CacheUse, changes: Writes) -> str | None:
    if match.is_causal:
        return "is_causal aligns the first query with the first key, which is not what a cache means; pass a mask"
    if key.cache is value.cache:
        return "keys and values are the same cache"
    if (reason := wrong_roles(key.cache, value.cache)) is not None:
        return reason
    if key.cache.format.sink != value.cache.format.sink or key.cache.format.ring != value.cache.format.ring:
        return "the caches of keys and values have different windows"
    if key.source is not CacheSource.APPENDED:
        return None
    if not same_size(*(sizes_of(use.new)[use.tokens_dim] for use in (key, value))):
        return "there are not as many new keys as new values"
    last = max(key.node, value.node, key=changes.order.__getitem__)
    for use, what in ((key, "keys"), (value, "values")):
        new, held = dtype_of(use.new), dtype_of(use.cache.tensors.window)
        if new != held:
            return f"new {what} of dtype {new} for a cache of dtype {held}"
        if changes.between(use.new, use.node, last):
            return f"new {what} are changed in place right behind the append"
    return None
