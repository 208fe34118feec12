"""Make the outputs of the graph those of the quantized program.

    return keys, values, logits        ->        return logits                                  (decode)
                                                 return k_codes, ..., v_codes, ..., logits      (prefill)

Returns to the backend, for each output of the original graph, how it is made from those of the new one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import GraphModule, Node

from .context.context import Appended, CacheInput, PassContext, Quantized


@dataclasses.dataclass(frozen=True, eq=False)
class OutputPlan:
    """One output of the original graph.

    Attributes:
        what: None for a plain value; else the cache that it is: an input passed through, an input appended to, or new.
        at: position among the new outputs of the value, or of the first inner tensor of a new cache.
    """

    what: CacheInput | Appended | Quantized | None
    at: int | None


def plan_outputs(gm: GraphModule, context: PassContext) -> GraphModule:
    output = gm.graph.output_node()
    values: list[Any] = []
    seen: dict[Node, int] = {}
    plans = []
    for node in output.args[0]:
        if isinstance(node, Node) and node in context.caches:
            plans.append(OutputPlan(context.caches[node], None))
        elif node in context.appended:
            plans.append(OutputPlan(context.appended[node], None))
        elif node in context.quantized:
            quantized = context.quantized[node]
            if node not in seen:
                seen[node] = len(values)
                values += [n for n in (*quantized.tensors, quantized.mean, quantized.norm) if n is not None]
            plans.append(OutputPlan(quantized, seen[node]))
        else:
            plans.append(OutputPlan(None, len(values)))
            values.append(node)
    output.args = (tuple(values),)
    context.outputs = plans
    for cache in context.caches.values():
        for user in list(cache.placeholder.users):
            gm.graph.erase_node(user)  # the appends that `rewrite_decode` replaced
        gm.graph.erase_node(cache.placeholder)
    return gm
