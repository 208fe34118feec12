"""Give a prompt's attention a mask only where it needs one, which is known when the graph runs.

mask = (columns <= rows) & padding          shown = padding[:, 0, 0]
                                            all_shown = shown.all().to("cpu")          once for all layers
out = sdpa(q, repeat_kv(k), ..., mask)  ->  out = causal_attention(q, k, v, shown, all_shown, None, None, scale)

Eager programs look whether a batch has padding, and pass no mask if it has none. While they are traced they cannot
look, so a compiled prompt has a mask always: of the square of its length, and several times as slow to attend with.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from .analysis.causal_masks import CausalMask, causal_mask
from .attention.axes import rearrange
from .context import AttentionForm, AttentionMatch, NoMatch, PassContext
from .emit.query import sinks_differ, standard_query, standard_sinks
from .emit.shown import shown_keys
from .graph.aliases import Writes
from .graph.values import dtype_of, example, same_size, sizes_of
from .graph.writing import Writer

#: What a mask hides, which keys it shows, and whether it shows all of them.
_Parts = tuple[CausalMask, Node | None, Node | None]


def causal_prefill(gm: GraphModule, context: PassContext) -> GraphModule:
    write, changes = Writer(gm.graph), Writes(gm.graph)
    parts: dict[Node, _Parts | None] = {}
    for match, (key, _) in context.uses.items():
        mask = context.standard[match].mask
        if not key.source.stays_dense or mask is None or not _is_plain(match):
            continue
        if mask not in parts:
            parts[mask] = _parts(write, mask, changes)
        if (found := parts[mask]) is not None and _sees_a_key(match, found[0]):
            _replace(write, match, found)
    write.erase_dead((*(match.node for match in context.uses), *parts))
    return gm


def _is_plain(match: AttentionMatch) -> bool:
    """Whether an attention does nothing that `causal_attention` does not do."""
    if match.softcap or match.is_causal or match.scale <= 0 or match.latent is not None or sinks_differ(match):
        return False
    if match.part is not None:
        return False
    inputs = (match.query, match.key, match.value)
    if any(dtype_of(node) != dtype_of(match.node) for node in inputs):
        return False  # it computes in the dtype of its inputs
    return same_size(sizes_of(match.key)[match.tokens_dims[0]], sizes_of(match.value)[match.tokens_dims[1]])


def _sees_a_key(match: AttentionMatch, found: CausalMask) -> bool:
    """Whether rows from which all keys are hidden, if there are any, give what they give in the program.

    That is nothing, but in programs that add a large negative number to the scores: the mean of all values there.
    """
    hides = found.added or match.form is not AttentionForm.SDPA
    return not (hides and found.shown) or match.sink_logits is not None


def _parts(write: Writer, mask: Node, changes: Writes) -> _Parts | None:
    found = causal_mask(mask, changes)
    if found is None:
        return None
    with write.after(mask):
        shown = shown_keys(write, found)
        if shown is None:
            return found, None, None
        all_shown = write.method("all", shown)
        if example(all_shown).device.type != "cpu":
            all_shown = write.method("to", all_shown, torch.device("cpu"))
    return found, shown, all_shown


def _replace(write: Writer, match: AttentionMatch, parts: _Parts) -> None:
    axes, (found, shown, all_shown) = match.axes, parts
    standard = (axes.batch, axes.heads, axes.rows, axes.value_dim)
    with write.before(match.node):
        try:
            query = standard_query(write, match)
            sides = zip((match.key, match.value), match.tokens_dims, strict=True)
            key, value = (write.by_head(side, tokens_dim) for side, tokens_dim in sides)
            if (heads := match.value_heads) is not None:
                value = write.method("narrow", value, 1, heads.first, heads.count)
                value = write.method("repeat", value, 1, sizes_of(key)[1] // heads.count, 1, 1)
            sink_logits = standard_sinks(write, match)
            arguments = (query, key, value, shown, all_shown, found.window, sink_logits, match.scale)
            out = write.call(torch.ops.innerq.causal_attention.default, *arguments, like=match.node)
            out = rearrange(write, out, standard, axes.out)
        except NoMatch:
            return
    write.replace(match.node, out)
