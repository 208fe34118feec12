"""Replace append and attention of a decode step by operators on the quantized cache.

    keys = cat([past_k, k], 2)                  opened = open_from(mask, past_k_state, 0)      once for all layers
    values = cat([past_v, v], 2)            ->  append_(past_k..., past_v..., k, v)
    out = attention(q, keys, values, mask)      out = decode_attention(q, past_k..., past_v..., mask, opened)
    return keys, values                         return (the same caches, appended to in place)

Of a sliding window the program returns the last tokens (``analysis/windows.py``). `append_` then drops as many tokens
at the front of the cache as the program does, and the attention is told how many of those it still has to see.

Query and new key are the program's, not normalized: `fold_key_norm` applies the key normalization. ``open_from`` finds
the position from which on the mask hides nothing, so that no layer has to read the mask there. It raises an error if
the mask shows padding tokens that the cache does not store.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .analysis.centring import obstacle
from .analysis.other_readers import OTHER_PAIR, share_one
from .analysis.several_caches import parts_of_each
from .analysis.whole_slices import whole_source
from .analysis.windows import cut, dropped
from .context import Appended, AttentionMatch, CacheSource, CacheUse, PassContext, ProgramCache, wrong_roles
from .emit.attention import attend, erase_replaced, open_before_append
from .emit.read_dequantized import early_reader
from .emit.writes import append
from .graph.aliases import Writes
from .graph.reading import is_output
from .graph.values import dtype_of, made_equal, plain_size, same_size, sizes_of
from .graph.writing import Writer, is_number_of_inputs


def rewrite_decode(gm: GraphModule, context: PassContext) -> GraphModule:
    write = Writer(gm.graph)
    written: set[tuple[Node, Node]] = set()
    changes = Writes(gm.graph)
    results: dict[Node, list[tuple[Node, Node]]] = {}
    several = parts_of_each(context)
    growing = {use.cache for uses in context.uses.values() for use in uses if use.source is CacheSource.APPENDED}
    for match, (key, value) in context.uses.items():
        if key.source not in (CacheSource.APPENDED, CacheSource.READ):
            continue
        grows = key.source is CacheSource.APPENDED
        pair = (key.node, value.node)
        last = max(pair, key=changes.order.__getitem__)
        if match.node not in results:  # of several caches, all are looked at before anything is written
            reasons = (_reason(one, growing, written, changes, context) for one in several.get(match.node, (match,)))
            if (reason := next(filter(None, reasons), None)) is not None:
                context.refuse(match, reason)
                continue
        if grows and pair not in written:
            written.add(pair)
            if key.seen is None and not any(earlier.cache is key.cache for earlier in context.appended.values()):
                open_before_append(write, context, match, key.cache, last, changes)
            with write.after(last):
                new_key, new_value = (write.by_head(use.new, use.tokens_dim) for use in (key, value))
                append(write, context, match, key.cache, value.cache, new_key, new_value, write.number(dropped(key)))
            for use in (key, value):
                longer = Appended(use.cache, sizes_of(use.new)[use.tokens_dim], dropped(use))
                whole = (user for user in use.returned.users if whole_source(user) is use.returned and is_output(user))
                context.appended.update(dict.fromkeys((use.returned, *whole), longer))
        shown = plain_size(dropped(key) - cut(key.node, key.seen, key.tokens_dim))
        parts = results.setdefault(match.node, [])
        attend(write, context, match, key.cache, value.cache, changes, dropped=shown, parts=parts)
        context.pairs[key.cache, value.cache] = None
        context.rewritten.append(match)
    erase_replaced(write, context)
    return gm


def _reason(
    match: AttentionMatch,
    growing: set[ProgramCache],
    written: set[tuple[Node, Node]],
    changes: Writes,
    context: PassContext,
) -> str | None:
    """Why an attention, or one of the caches that it reads, is left as it is; None if it is rewritten.

    Args:
        growing: the caches to which the graph appends.
        written: keys and values to which it has appended for earlier attentions.
    """
    key, value = context.uses[match]
    if (reason := _obstacle(match, key, value, changes)) is not None:
        return reason
    grows, pair = key.source is CacheSource.APPENDED, (key.node, value.node)
    if not grows and (key.cache in growing or value.cache in growing):
        return "it reads a cache without the tokens that this graph appends to it"
    if grows and not context.config.rewrite:
        last = max(pair, key=changes.order.__getitem__)
        if (reason := early_reader(match, context.standard[match], last, changes.order)) is not None:
            return reason
    return OTHER_PAIR if any(share_one(pair, other) for other in written) else None


def _obstacle(match: AttentionMatch, key: CacheUse, value: CacheUse, changes: Writes) -> str | None:
    if match.is_causal:
        return "is_causal aligns the first query with the first key, which is wrong with a cache; pass a mask"
    if key.cache is value.cache:
        return "keys and values are the same cache"
    if (reason := wrong_roles(key.cache, value.cache) or obstacle(match, key.cache)) is not None:
        return reason
    if key.cache.format.sink != value.cache.format.sink or key.cache.format.ring != value.cache.format.ring:
        return "key and value cache have different numbers of sink or recent tokens"
    if key.source is not CacheSource.APPENDED:
        return None
    if not same_size(*(sizes_of(use.new)[use.tokens_dim] for use in (key, value))):
        return "the number of new keys differs from that of new values"
    for name in ("kept", "seen"):
        number, other = (cut(use.node, getattr(use, name), use.tokens_dim) for use in (key, value))
        if not made_equal(number, other):
            return f"the number of keys that are {name} differs from that of values"
        if not is_number_of_inputs(key.node.graph, number):
            return f"the number of keys that are {name} does not follow from sizes that are inputs"
    last = max(key.node, value.node, key=changes.order.__getitem__)
    for use, what in ((key, "keys"), (value, "values")):
        new, held = dtype_of(use.new), dtype_of(use.cache.tensors.window)
        if new != held:
            return f"new {what} have dtype {new}, but the cache has dtype {held}"
        if changes.between(use.new, use.node, last):
            return f"new {what} are changed in place after they were appended"
    return None
