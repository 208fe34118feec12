"""Changes a graph: inserts nodes together with their example values. Passes change graphs only by this module.

    write = Writer(gm.graph)
    with write.before(match.node):
        x = write.method("to", query, torch.float32)                  # query.to(torch.float32)
        x = write.call(operator.mul, x, factor, like=match.node)      # x * factor, in place of match.node
    write.replace(match.node, x)

The example value of a new node is computed from those of its arguments, in the fake mode of the graph. Later passes
need it to read shapes and dtypes, and AOTAutograd caches a graph on disk only if all nodes have one. If it cannot be
computed, the node has none. The graph is still correct, but passes that need the value give up, and the graph is
compiled again in each process.

``like`` is a node that the new one replaces: its metadata, such as the stack trace, is copied, except the example
value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer

from ...kernels.internals.dynamo_graphs import Source, set_source
from ...kernels.internals.graphs import as_python, is_erased
from ...kernels.internals.tensors import FakeTensor, enable_python_dispatcher
from .operations import Kind
from .reading import Call, is_pure, kinds, op_name, read, written
from .values import example, example_or_none, forget_example, has_example, plain_size, set_example, value_of

log = logging.getLogger("innerq_compile.passes")


class Writer:
    """Inserts nodes into a graph, at the position set by `before` or `after`, by default before the output."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    # --- positions

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """Context in which nodes are inserted before ``node``, in the order of their creation."""
        with self.graph.inserting_before(node):
            yield

    @contextmanager
    def after(self, node: Node) -> Iterator[None]:
        """Context in which nodes are inserted after ``node``, in the order of their creation."""
        with self.graph.inserting_before(node.next):
            yield

    def behind(self, value: Node) -> AbstractContextManager[None]:
        """Context in which nodes are inserted as early as they can read ``value``, in front of all layers if it is."""
        if value.op not in ("placeholder", "get_attr"):
            return self.after(value)
        return self.before(next(node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr")))

    # --- nodes

    def call(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        like: Node | None = None,
        value: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Node:
        """Insert a call of a function or operator. Arguments are nodes, constants, and tuples and lists of these.

        ``value`` is its example value where the caller knows it: some operators consist of dozens of others, and
        computing them with fake tensors in every layer takes a notable part of a compilation.
        """
        return self._finish(self.graph.call_function(function, args, kwargs), like, value)

    def method(self, name: str, tensor: Node, /, *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
        """Insert a call of the method ``name`` of ``tensor``."""
        return self._finish(self.graph.call_method(name, (tensor, *args), kwargs), like)

    def placeholder(self, name: str, value: Any, source: Source | None = None) -> Node:
        """Insert a placeholder after all others, with its example value and Dynamo's source of it."""
        inputs = self.graph.find_nodes(op="placeholder")
        with self.graph.inserting_after(inputs[-1]) if inputs else nullcontext():
            node = self.graph.placeholder(name)
        set_example(node, value)
        set_source(node, source)
        return node

    def traced(self, node: Node) -> Proxy:
        """A proxy for a number in the graph. Each Python operation on it inserts a node."""
        return Proxy(node, _Tracer(self))

    def size(self, tensor: Node, dim: int) -> Node | int:
        """A size of a tensor: an int if it is constant, otherwise a new node that reads it from the tensor."""
        size = plain_size(example(tensor).shape[dim])
        return size if isinstance(size, int) else self.method("size", tensor, dim)

    def number(self, size: int | torch.SymInt) -> Node | int:
        """A size as an argument: an int, an input of the graph, or computed here from several such inputs.

        Raises:
            KeyError: if it has a symbol that no input has, or takes more than sums and products of symbols.
        """
        try:
            return size_node(self.graph, size)
        except KeyError:
            if not is_number_of_inputs(self.graph, size):
                raise
            expr = size.node.expr  # pyright: ignore[reportAttributeAccessIssue]
            inputs = {str(symbol): _input_of(self.graph, symbol) for symbol in expr.free_symbols}
        return eval(as_python(expr), {name: self.traced(node) for name, node in inputs.items() if node}).node

    def by_head(self, node: Node, tokens_dim: int) -> Node:
        """Keys or values as ``[B, H, S, D]``; ``tokens_dim`` (2 or 1) is the dimension that counts tokens."""
        return node if tokens_dim == 2 else self.method("transpose", node, 1, 2)

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """A tensor cast to ``dtype``; ``node`` itself if it has this dtype."""
        return node if example(node).dtype == dtype else self.method("to", node, dtype)

    # --- changes

    def replace(self, old: Node, new: Node, where: Callable[[Node], bool] = lambda user: True) -> None:
        """Replace ``old`` by ``new`` in all users of ``old`` for which ``where`` is true. ``old`` is not erased."""
        for user in list(old.users):
            if user is not new and where(user):
                user.replace_input_with(old, new)

    def set_outputs(self, values: Iterable[Any]) -> None:
        """Set the outputs of the graph to ``values``."""
        self.graph.output_node().args = (tuple(values),)

    def erase_dead(self, nodes: Iterable[Node]) -> None:
        """Erase those of ``nodes`` that have no users, and then their inputs if they have no other users.

        Only nodes without side effects are erased, because the graph is not functionalized: those that write at most
        to a tensor that is computed for them alone, as in ``scores /= 4``.
        """
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if is_erased(node) or node.users or not (is_pure(node) or _writes_to_own(node)):
                continue
            pending.extend(node.all_input_nodes)
            self.graph.erase_node(node)

    # --- values

    def _finish(self, node: Node, like: Node | None, value: torch.Tensor | None = None) -> Node:
        if like is not None:
            node.meta = {**like.meta}
            forget_example(node)
        if value is None:
            self.note_example(node)
        else:
            set_example(node, value)
        return node

    def note_example(self, node: Node) -> None:
        """Compute and set the example value of a node; if it cannot be computed, the node has none."""
        unknown = [argument for argument in node.all_input_nodes if not has_example(argument)]
        if unknown:
            log.debug("no example of %s: none of %s", node, unknown)
            return
        try:
            with self._fake_mode(node) or nullcontext(), enable_python_dispatcher():  # or padding fixes sizes
                set_example(node, _computed(node))
        except Exception as error:  # fake tensors may raise anything; the graph is correct without the example value
            log.debug("no example of %s: %r", node, error)

    def _fake_mode(self, node: Node) -> Any:
        """The fake mode of the graph's example values; that of the tracing context is a different one."""
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
    """Inserts the nodes of Python operations on proxies, with their example values."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer.graph)
        self._writer = writer

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        self._writer.note_example(node)
        return node


def set_argument(call: Call, name: str, value: Any) -> None:
    """Replace the argument ``name`` of a call, positional or keyword as it was given."""
    index, node = call.signature.index(name), call.node
    if index is not None and index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(call.signature.spelled(name, node.kwargs), value)


def replace_argument(node: Node, name: str, value: Any) -> None:
    """Replace the argument ``name`` of a node, see `set_argument`.

    Raises:
        ValueError: if the node is not recognized.
    """
    call = read(node)
    if call is None:
        raise ValueError(f"{node} is not recognized: only arguments of operations in the table can be replaced")
    set_argument(call, name, value)


def _writes_to_own(node: Node) -> bool:
    """Whether all that a node does is to write to its first argument, new memory that nothing else uses.

    Several such writes may follow each other, as in ``scores /= 4; scores += mask``.
    """
    source = _written_alone(node)
    while source is not None and (earlier := _written_alone(source)) is not None:
        source = earlier
    # that of one tensor by einsum is a view
    return source is not None and bool(kinds(source) & Kind.NEW) and op_name(source) != "einsum"


def _written_alone(node: Node) -> Node | None:
    """The argument that a node writes in place, if it writes no other one and nothing else uses it; else None."""
    call = read(node)
    source = call.source() if call is not None and call.in_place else None
    return source if source is not None and written(node) == [source] and list(source.users) == [node] else None


def size_node(graph: Graph, size: int | torch.SymInt) -> Node | int:
    """A size as an argument of a node: an int if it is constant, otherwise the placeholder of the symbolic int.

    Raises:
        KeyError: if no placeholder has this size as its value.
    """
    size = plain_size(size)
    if isinstance(size, int):
        return size
    node = _input_of(graph, size.node.expr)
    if node is None:
        raise KeyError(f"no input of the graph is the size {size}")
    return node


def is_number_of_inputs(graph: Graph, size: int | torch.SymInt) -> bool:
    """Whether `Writer.number` can compute a size."""
    size = plain_size(size)
    if isinstance(size, int):
        return True
    expr = size.node.expr
    whole = expr.is_polynomial() and all(number.is_integer for number in expr.atoms(sympy.Number))
    return _input_of(graph, expr) is not None or (
        whole and all(_input_of(graph, symbol) is not None for symbol in expr.free_symbols)
    )


def _input_of(graph: Graph, expr: sympy.Expr) -> Node | None:
    """The placeholder of a symbolic int whose value is ``expr``; None if there is none."""
    for node in graph.find_nodes(op="placeholder"):
        value = value_of(node)
        if isinstance(value, torch.SymInt) and value.node.expr == expr:
            return node
    return None
