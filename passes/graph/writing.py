"""Writing a graph: nodes that are put in, with what they compute noted at once. Passes change graphs here only.

    write = Writer(gm.graph)
    with write.before(match.node):
        x = write.method("to", query, torch.float32)                  # query.to(torch.float32)
        x = write.call(operator.mul, x, factor, like=match.node)      # x * factor, in place of match.node
    write.replace(match.node, x)

Every node gets its fake tensor (or size) as those of Dynamo have, computed in the graph's own fake mode from those of
its arguments: passes behind read shapes and dtypes of it as of any other, and AOTAutograd keeps a graph in its cache on
disk only where all values are known. Where a value cannot be computed, or that of an argument is not known, the node
has none: the graph is right, passes that would need it leave the place alone, and it is compiled anew in each process.

``like`` is a node that the new one stands for: where in the program it comes from, and whatever else is noted on it but
its value, is taken over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.fx import Graph, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer

from ...kernels.internals.dynamo_graphs import Source, set_source
from ...kernels.internals.graphs import is_erased
from ...kernels.internals.tensors import FakeTensor
from .reading import Call, is_pure, read
from .values import example, example_or_none, forget_example, has_example, set_example, value_of

log = logging.getLogger("innerq_compile.passes")


class Writer:
    """Puts nodes into a graph, at the place that `before` or `after` says; else in front of its output."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    # --- places

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """What is written inside stands in front of ``node``."""
        with self.graph.inserting_before(node):
            yield

    @contextmanager
    def after(self, node: Node) -> Iterator[None]:
        """What is written inside stands behind ``node``, in the order in which it is written."""
        with self.graph.inserting_before(node.next):
            yield

    # --- nodes

    def call(self, function: Callable[..., Any], /, *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
        """A call of a function or operator; arguments are nodes, constants, and tuples and lists of them."""
        return self._finish(self.graph.call_function(function, args, kwargs), like)

    def method(self, name: str, tensor: Node, /, *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
        """A call of the method ``name`` of a tensor."""
        return self._finish(self.graph.call_method(name, (tensor, *args), kwargs), like)

    def placeholder(self, name: str, value: Any, source: Source | None = None) -> Node:
        """An input behind those that the graph has, with an example of it and where it comes from."""
        inputs = self.graph.find_nodes(op="placeholder")
        with self.graph.inserting_after(inputs[-1]) if inputs else nullcontext():
            node = self.graph.placeholder(name)
        set_example(node, value)
        set_source(node, source)
        return node

    def traced(self, node: Node) -> Proxy:
        """A number of the graph for arithmetic of Python, each operation of which becomes a node."""
        return Proxy(node, _Tracer(self))

    def size(self, tensor: Node, dim: int) -> Node | int:
        """A size of a tensor: a number where it is one, else a node that asks the tensor for it."""
        size = example(tensor).shape[dim]
        if isinstance(size, int) or size.node.expr.is_number:
            return int(size)
        return self.method("size", tensor, dim)

    def by_head(self, node: Node, tokens_dim: int) -> Node:
        """Keys or values whose tokens are along ``tokens_dim`` as ``[B, H, S, D]``."""
        return node if tokens_dim == 2 else self.method("transpose", node, 1, 2)

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """A tensor in another dtype; itself where it has it."""
        return node if example(node).dtype == dtype else self.method("to", node, dtype)

    # --- changes

    def replace(self, old: Node, new: Node, where: Callable[[Node], bool] = lambda user: True) -> None:
        """Let those users of ``old`` for which ``where`` holds read ``new``. What ``old`` was stays as it is."""
        for user in list(old.users):
            if user is not new and where(user):
                user.replace_input_with(old, new)

    def set_outputs(self, values: Iterable[Any]) -> None:
        """Let the graph return ``values``."""
        self.graph.output_node().args = (tuple(values),)

    def erase_dead(self, nodes: Iterable[Node]) -> None:
        """Erase those of ``nodes`` that nothing uses, and what only they used.

        Only operations that are known to have no effect go: a graph of Dynamo may write into its inputs.
        """
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if is_erased(node) or node.users or not is_pure(node):
                continue
            pending.extend(node.all_input_nodes)
            self.graph.erase_node(node)

    # --- values

    def _finish(self, node: Node, like: Node | None) -> Node:
        if like is not None:
            node.meta = {**like.meta}
            forget_example(node)
        self.note_example(node)
        return node

    def note_example(self, node: Node) -> None:
        """Compute what a node computes, and note it; nothing where that is not known."""
        unknown = [argument for argument in node.all_input_nodes if not has_example(argument)]
        if unknown:
            log.debug("no example of %s: none of %s", node, unknown)
            return
        try:
            with self._fake_mode(node) or nullcontext():
                set_example(node, _computed(node))
        except Exception as error:  # whatever a fake tensor may raise: the graph is right all the same
            log.debug("no example of %s: %r", node, error)

    def _fake_mode(self, node: Node) -> Any:
        """The fake mode of the graph. That of the compiler's context is another one, made for what comes behind."""
        nearby = (*node.all_input_nodes, *self.graph.find_nodes(op="placeholder"))
        values = (example_or_none(other) for other in nearby)
        return next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)


def _computed(node: Node) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), example)
    target: Any = node.target
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


class _Tracer(GraphAppendingTracer):
    """Writes the operations of Python's arithmetic on proxies."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer.graph)
        self._writer = writer

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        self._writer.note_example(node)
        return node


def set_argument(call: Call, name: str, value: Any) -> None:
    """Give a node another argument ``name``, in the way in which its call is spelled."""
    place, node = call.signature.place(name), call.node
    if place is not None and place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(call.signature.spelled(name, node.kwargs), value)


def replace_argument(node: Node, name: str, value: Any) -> None:
    """As `set_argument`, of a node that is known to be understood.

    Raises:
        ValueError: if it is not.
    """
    call = read(node)
    if call is None:
        raise ValueError(f"{node} is not understood; only arguments of operations in the tables can be replaced")
    set_argument(call, name, value)


def size_node(graph: Graph, size: int | torch.SymInt) -> Node | int:
    """A size as an argument of a node: itself where it is a number, else the input of the graph that carries it.

    Raises:
        KeyError: if no input carries that size.
    """
    if isinstance(size, int) or size.node.expr.is_number:
        return int(size)
    for node in graph.find_nodes(op="placeholder"):
        value = value_of(node)
        if isinstance(value, torch.SymInt) and value.node.expr == size.node.expr:
            return node
    raise KeyError(f"no input of the graph is the size {size}")
