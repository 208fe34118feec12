"""Return inner tensors in place of new caches, and nothing in place of caches that are inputs.

    return keys, values, logits        ->        return logits                                  (decode)
                                                 return k_codes, ..., v_codes, ..., logits      (prefill)

For each output of the original graph, ``context.outputs`` says how the runtime rebuilds it.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .context import OutputPlan, PassContext
from .graph.reading import outputs
from .graph.writing import Writer


def plan_outputs(gm: GraphModule, context: PassContext) -> GraphModule:
    values: list[Node | int | None] = []
    seen: dict[Node, int] = {}
    for node in outputs(gm.graph):
        if node in context.caches:
            context.outputs.append(OutputPlan(context.caches[node], None))
        elif node in context.appended:
            context.outputs.append(OutputPlan(context.appended[node], None))
        elif node in context.quantized:
            if node not in seen:
                seen[node] = len(values)
                values += context.quantized[node].tensors
            context.outputs.append(OutputPlan(context.quantized[node], seen[node]))
        else:
            context.outputs.append(OutputPlan(None, len(values)))
            values.append(node)
    Writer(gm.graph).set_outputs(values)
    for placeholder in context.caches:
        for user in list(placeholder.users):  # a cat that `rewrite_decode` has replaced, and the last tokens of it
            for part in list(user.users):
                gm.graph.erase_node(part)
            gm.graph.erase_node(user)
        gm.graph.erase_node(placeholder)
    return gm
