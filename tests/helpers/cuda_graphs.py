"""What would keep Inductor from recording a graph as a CUDA graph, or from one recording that serves all steps.

Asked of the graph that Inductor gets, so that it can be asserted on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch.fx import GraphModule


@dataclasses.dataclass
class Recorded:
    """A graph that is to be recorded.

    Attributes:
        moving: inputs that are changed in place and may change their address: Inductor then skips CUDA graphs.
        copied: floating inputs of four dimensions that are copied into the recording at every step.
        symbols: symbolic sizes among the inputs: there is a recording for each of their values.
        changed: those of the symbols that had another value in a later call: the graph is recorded again.
        moved: inputs whose address was expected to stay and changed in a later call: the graph is recorded again.
        waits: a node that cannot be recorded, or None.
        targets: names of the operators, in order.
    """

    moving: list[str]
    copied: list[str]
    symbols: list[str]
    waits: str | None
    targets: list[str]
    changed: list[str] = dataclasses.field(default_factory=list)
    moved: list[str] = dataclasses.field(default_factory=list)

    @property
    def obstacles(self) -> list[str]:
        return [*self.moving, *self.copied, *self.changed, *self.moved, *filter(None, [self.waits])]


@contextlib.contextmanager
def recordings() -> Iterator[list[Recorded]]:
    """Within the block, collect the graphs that are to be recorded. They run operator by operator."""
    import torch._inductor.compile_fx as module
    from functorch.compile import make_boxed_func
    from torch._inductor.utils import get_first_incompatible_cudagraph_node

    found: list[Recorded] = []
    real = module.compile_fx

    def inner(gm: GraphModule, example_inputs, *, static_input_idxs=(), **kwargs):
        if not torch._inductor.config.triton.cudagraphs:
            return make_boxed_func(gm.forward)
        found.append(_look(gm, set(static_input_idxs), get_first_incompatible_cudagraph_node(gm)))
        return make_boxed_func(_following(gm, static_input_idxs, found[-1]))

    def compile_fx(gm, example_inputs, *args, config_patches=None, **kwargs):
        return real(gm, example_inputs, inner_compile=inner, config_patches=config_patches)

    with pytest.MonkeyPatch.context() as patch, torch._functorch.config.patch(enable_autograd_cache=False):
        patch.setattr(module, "compile_fx", compile_fx)
        torch._dynamo.reset()
        yield found
        torch._dynamo.reset()


def _following(gm: GraphModule, static, recorded: Recorded):
    """The graph's forward, which notes static inputs whose address, and sizes that have changed since the last call."""
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    before: dict[int, int] = {}

    def forward(*args):
        sizes = {index: value for index, value in enumerate(args) if isinstance(value, int)}
        now = sizes | {index: args[index].data_ptr() for index in static}
        for index, value in now.items():
            if before.get(index, value) != value:
                (recorded.changed if index in sizes else recorded.moved).append(names[index])
        before.update(now)
        return gm.forward(*args)

    return forward


def _look(gm: GraphModule, static: set[int], waiting) -> Recorded:
    inputs = gm.graph.find_nodes(op="placeholder")
    tensors = [node for node in inputs if isinstance(node.meta["val"], torch.Tensor)]
    written = {
        node.args[0]
        for node in gm.graph.nodes
        if node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
    }
    fixed = {node for index, node in enumerate(inputs) if index in static}
    return Recorded(
        moving=[node.name for node in tensors if node in written and node not in fixed],
        copied=[
            node.name
            for node in tensors
            if node.meta["val"].dim() == 4 and node.meta["val"].is_floating_point() and node not in fixed
        ],
        symbols=sorted({str(node.meta["val"]) for node in inputs if isinstance(node.meta["val"], torch.SymInt)}),
        waits=None if waiting is None else str(waiting.target),
        targets=[str(node.target) for node in gm.graph.nodes if node.op == "call_function"],
    )
