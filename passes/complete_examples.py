"""Give each node that a pass has put in the value that Dynamo's nodes have. Changes no node.

    q = to(q_embed, torch.float32)       # no example_value        the same, with the fake tensor that it computes
    x = q.unsqueeze(2)                                       ->

AOTAutograd keeps a graph in its cache on disk only where it knows the values that methods are called on.
"""

from __future__ import annotations

import logging

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ..kernels.internals.tensors import FakeTensor
from .context.context import PassContext
from .graph.values import example

log = logging.getLogger("innerq_compile.passes")


def complete_examples(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.rewritten and not context.caches:
        return gm
    inputs = (node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder"))
    # that of the compiler's context is another one, made for what comes behind the backend
    mode = next((value.fake_mode for value in inputs if isinstance(value, FakeTensor)), None)
    for node in gm.graph.nodes:
        if node.op not in ("call_function", "call_method") or "example_value" in node.meta or mode is None:
            continue
        if any("example_value" not in argument.meta for argument in node.all_input_nodes):
            continue
        try:
            with mode:
                node.meta["example_value"] = _value(node)
        except Exception as error:  # whatever a fake tensor may raise: the graph is right, and compiled anew each time
            log.debug("no example of %s: %r", node, error)
    return gm


def _value(node: Node):
    args, kwargs = map_arg((node.args, node.kwargs), example)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)
