"""Find the attentions of a graph. Does not change the graph.

    sdpa(q, repeat(k), repeat(v), mask)                              -> AttentionMatch(q, k, v, masks, scale)
    matmul(dropout(softmax(matmul(q, k^T) * scale + mask)), v)       -> AttentionMatch(q, k, v, masks, scale)
    sdpa(q, cat([up(latent), repeat(rotary)]), up(latent), mask)     -> AttentionMatch(q, rotary, latent, ..., how)
    sdpa(q, cat([k_0, k_1], 2), cat([v_0, v_1], 2), mask)            -> one for each of two caches

The matcher is structural (``attention/``): it starts at the node of the output and walks back through operations that
do not change the result, in any spelling and layout. At the first operation that it does not support it gives up with a
reason. Calls of other functions that compute a whole attention get a reason, too.
"""

from __future__ import annotations

import dataclasses

from torch.fx import GraphModule, Node

from .attention import by_cache, match_attention_at, with_latent
from .attention.steps import Order
from .context import NoMatch, PassContext
from .graph.aliases import Writes
from .graph.locations import module_path, source_line
from .graph.reading import op_name


def match_attention(gm: GraphModule, context: PassContext) -> GraphModule:
    order, changes = Order(gm.graph), Writes(gm.graph)
    for node in gm.graph.nodes:
        try:
            match = match_attention_at(node, context.caches, order, changes)
            if match is not None:
                match = with_latent(match, context.caches, changes)
                match = dataclasses.replace(match, where=source_line(node), layer=module_path(node))
                context.attentions += by_cache(match, context.caches, changes)
            elif (name := _other_attention_function(node)) is not None:
                raise NoMatch(f"{name} is not supported")
        except NoMatch as reason:
            context.unmatched.add(node)
            context.refuse(node, str(reason))
    return gm


def _other_attention_function(node: Node) -> str | None:
    """The name of the function that a node calls, if it computes a whole attention but is not SDPA; else None."""
    if node.op != "call_function" or op_name(node) is not None:
        return None
    name = getattr(node.target, "__name__", "") or str(node.target)
    known = ("flex_attention", "multi_head_attention", "flash_attn", "scaled_dot_product", "attention_forward")
    return name if any(word in name or word in str(node.target) for word in known) else None
