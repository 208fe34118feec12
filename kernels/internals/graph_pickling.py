"""Graphs of Dynamo as bytes, with the fake tensors and symbolic sizes of their nodes. See ``table/graph_pickling.py``.

torch's own ``GraphPickler`` refuses fake tensors that Dynamo has made, and functions outside of a few modules.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._guards import CompileContext, TracingContext
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_aggregate, map_arg
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .dynamo_graphs import ON_MODULES
from .tensors import META, meta_tensor, no_dispatch

#: Attributes of a ``ShapeEnv`` that are not carried over: what it needs while Dynamo traces, and caches of results.
_TRANSIENT = frozenset({"tracked_fakes", "fake_tensor_cache", "log", "fx_node_cache", "_prev_cache_key", "events"})
#: Metadata of nodes that is carried over. Of ``tensor_dict`` only whether an input keeps its address.
_META = ("example_value", "stack_trace", "nn_module_stack")
_STATIC = "_dynamo_static_input_type"
#: Metadata of a graph that AOTAutograd reads.
_NAMES, _COMPILE_ID = "dynamo_flat_name_to_original_fqn", "dynamo_compile_id"
#: The attribute of a symbolic context that says which symbols the sizes of a tensor are, by the id of a ``ShapeEnv``.
_CACHE = "shape_env_to_source_to_symbol_cache"


class NotPicklable(Exception):
    """A graph holds something that another process could not use."""


class Loaded(NamedTuple):
    """What :func:`load` returns.

    Attributes:
        gm: the graph module.
        mode: the new fake mode of its values.
        contexts: the symbolic context of each input.
        value: the value that was kept with it.
    """

    gm: GraphModule
    mode: FakeTensorMode
    contexts: list[Any]
    value: Any


def dump(
    gm: GraphModule, example_inputs: Sequence[Any], others: Sequence[GraphModule] = (), value: Any = None
) -> bytes:
    """A graph module as bytes, with what Dynamo knows about the sizes of its inputs.

    Args:
        gm: the graph module.
        example_inputs: its inputs.
        others: graph modules made of it, whose values are of the same fake mode.
        value: anything that may hold these graph modules, and nodes of them and of graphs that exist no more.

    Raises:
        NotPicklable: if a graph has modules or tensors of its own, or something in it cannot be pickled.
    """
    graphs = [gm, *others]
    modes = {id(mode): mode for graph in graphs for mode in map(_mode_of, graph.graph.nodes) if mode is not None}
    if len(modes) != 1 or any(node.op in ("get_attr", "call_module") for graph in graphs for node in graph.graph.nodes):
        raise NotPicklable("a graph holds modules, tensors of its own, or values of several fake modes")
    (mode,) = modes.values()
    pickler = _Pickler(io.BytesIO(), mode.shape_env, graphs)
    try:
        pickler.dump(_state(mode.shape_env))  # first, because sizes of tensors are computed when they are made
        pickler.dump([_context(one, mode.shape_env) for one in example_inputs])
        pickler.dump([_graph_data(graph, pickler.numbers) for graph in graphs])
        pickler.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, NotImplementedError) as error:
        raise NotPicklable(str(error)) from error
    return pickler.stream.getvalue()


def load(data: bytes) -> Loaded:
    """What was given to :func:`dump`."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    unpickler, shape_env = _Unpickler(io.BytesIO(data), mode), mode.shape_env
    for name, found in unpickler.load().items():
        setattr(shape_env, name, found)
    contexts = unpickler.load()
    for index, context in enumerate(contexts):
        if (cache := getattr(context, _CACHE, None)) is not None:
            contexts[index] = _with_cache(context, {id(shape_env): known for known in cache.values()})
    unpickler.graphs = [_graph(*data) for data in unpickler.load()]
    unpickler.nodes = [list(gm.graph.nodes) for gm in unpickler.graphs]
    return Loaded(unpickler.graphs[0], mode, contexts, unpickler.load())


def _graph(kind: type[GraphModule], nodes: list[Any], notes: dict[str, Any], of_dynamo: bool) -> GraphModule:
    graph = Graph()
    made: list[Node] = []
    for op, name, target, args, kwargs, annotation, meta, source in nodes:
        args, kwargs = map_aggregate((args, kwargs), lambda value: _resolved(value, made))  # pyright: ignore[reportGeneralTypeIssues]
        node = graph.create_node(op, target, args, kwargs, name, annotation)
        node.meta = meta
        if source is not None:
            node._dynamo_source = source  # pyright: ignore[reportAttributeAccessIssue]
        made.append(node)
    gm = kind(torch.nn.Module(), graph)
    gm.meta |= notes
    if _COMPILE_ID in notes:
        gm.meta[_COMPILE_ID] = CompileContext.current_compile_id()
    if of_dynamo:  # empty without parameters; AOTAutograd expects all inputs of such a graph to have sources
        for name in ON_MODULES:
            setattr(gm, name, {})
    return gm


class _Place:
    """Stands for a node among the arguments of another."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return _Place, (self.index,)


def _resolved(value: Any, made: list[Node]) -> Any:
    return made[value.index] if isinstance(value, _Place) else value


def _mode_of(node: Node) -> FakeTensorMode | None:
    value = node.meta.get("example_value")
    if is_traceable_wrapper_subclass(value):
        value = getattr(value, value.__tensor_flatten__()[0][0])  # pyright: ignore[reportAttributeAccessIssue]
    return value.fake_mode if isinstance(value, FakeTensor) else None


def _graph_data(gm: GraphModule, numbers: dict[Node, tuple[int, int]]) -> tuple[Any, ...]:
    notes = {_NAMES: gm.meta.get(_NAMES, {})} | ({_COMPILE_ID: None} if _COMPILE_ID in gm.meta else {})
    # AOTAutograd's key depends on the order of a module's attributes, and that on when its code was written
    kind = _LazyGraphModule if isinstance(gm, _LazyGraphModule) else GraphModule
    return kind, [_node_data(node, numbers) for node in gm.graph.nodes], notes, hasattr(gm, ON_MODULES[0])


def _node_data(node: Node, numbers: dict[Node, tuple[int, int]]) -> tuple[Any, ...]:
    args, kwargs = map_arg((node.args, node.kwargs), lambda other: _Place(numbers[other][1]))  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
    meta = _meta_of(node)
    if (static := node.meta.get("tensor_dict", {}).get(_STATIC)) is not None:
        meta["tensor_dict"] = {_STATIC: static}
    elif node.op == "placeholder":
        meta["tensor_dict"] = {}
    return node.op, node.name, node.target, args, kwargs, node.type, meta, getattr(node, "_dynamo_source", None)


def _meta_of(node: Node) -> dict[str, Any]:
    return {key: node.meta[key] for key in _META if key in node.meta}


def _context(value: Any, shape_env: Any) -> Any:
    """Which sizes of an input are symbols, and which symbols: how AOTAutograd makes it a fake tensor again."""
    found = TracingContext.get().tensor_to_context
    if not isinstance(value, torch.Tensor) or value not in found:
        return None
    context = found[value]
    cache = getattr(context, _CACHE, None)
    return context if cache is None else _with_cache(context, {0: dict(cache.get(id(shape_env), {}))})


def _with_cache(context: Any, cache: dict[int, Any]) -> Any:
    return dataclasses.replace(context, **{_CACHE: cache})


def _state(shape_env: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(shape_env).items() if name not in _TRANSIENT}


# --- values -----------------------------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Writes graphs.

    Attributes:
        numbers: for each node of a graph, the number of the graph and its own.
    """

    def __init__(self, stream: io.BytesIO, shape_env: Any, graphs: Sequence[GraphModule]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.stream = stream
        self.numbers = {
            node: (number, index) for number, gm in enumerate(graphs) for index, node in enumerate(gm.graph.nodes)
        }
        self._graphs = {id(gm): number for number, gm in enumerate(graphs)}
        self._shape_env = shape_env
        self._storages: dict[int, tuple[int, Any]] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if obj is self._shape_env and obj is not None:
            return ("shape_env",)
        if isinstance(obj, Node) and (number := self.numbers.get(obj)) is not None:
            return ("node", *number)
        if isinstance(obj, GraphModule) and (number := self._graphs.get(id(obj))) is not None:
            return ("graph", number)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Node):
            return _erased, (obj.op, obj.name, obj.target, _meta_of(obj))
        if isinstance(obj, GraphModule):
            raise NotPicklable("another graph")
        if isinstance(obj, FakeTensor):
            return _tensor, (_ModeOfTensor(), *self._described(obj))
        if isinstance(obj, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            if not isinstance(obj, torch.SymInt):
                raise NotPicklable("the graph holds symbolic numbers that are no sizes")
            return _sym_int, (obj.node._expr, self._shape_env, obj.node.pytype, obj.node._hint)
        if is_traceable_wrapper_subclass(obj):
            names, context = obj.__tensor_flatten__()
            inner = {name: getattr(obj, name) for name in names}
            return _wrapper, (type(obj), inner, context, tuple(obj.shape), tuple(obj.stride()))
        if isinstance(obj, OpOverload):
            return _overload, (obj.namespace, obj._opname, obj._overloadname)
        if isinstance(obj, OpOverloadPacket):
            return _packet, tuple(obj._qualified_op_name.split("::"))
        if isinstance(obj, torch.Tensor):
            raise NotPicklable("the graph holds a tensor")
        return NotImplemented

    def _described(self, tensor: FakeTensor) -> tuple[Any, ...]:
        has_gradient = tensor.is_leaf and tensor.grad is not None
        if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg() or has_gradient:
            raise NotPicklable("the graph holds a tensor that is not strided, or has a gradient")
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = (len(self._storages), storage.nbytes())
            self._kept.append(storage)
        sizes = tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset()
        return (*self._storages[key], *sizes, tensor.dtype, tensor.fake_device, tensor.requires_grad)


class _ModeOfTensor:
    """Stands for the fake mode in the arguments of :func:`_tensor`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _current, ()


#: The unpickler at work: functions that pickle calls take no other arguments than those that were pickled. Dynamo
#: compiles one graph at a time.
_AT_WORK: list[_Unpickler] = []


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, mode: FakeTensorMode) -> None:
        super().__init__(stream)
        self.mode = mode
        self.graphs: list[GraphModule] = []
        self.nodes: list[list[Node]] = []
        self.first: dict[int, torch.Tensor] = {}  # for each storage, the first tensor that has it

    def persistent_load(self, pid: Any) -> Any:
        kind, *number = pid
        if kind == "node":
            return self.nodes[number[0]][number[1]]
        return self.graphs[number[0]] if kind == "graph" else self.mode.shape_env

    def load(self) -> Any:
        _AT_WORK.append(self)
        try:
            return super().load()
        finally:
            _AT_WORK.pop()


def _erased(op: str, name: str, target: Any, meta: dict[str, Any]) -> Node:
    """A node that is in no graph any more: it has a name and a value, and no arguments."""
    node = Graph().create_node(op, target, name=name)
    node.meta = meta
    return node


def _current() -> _Unpickler:
    return _AT_WORK[-1]


def _tensor(
    at_work: _Unpickler,
    number: int,
    nbytes: Any,
    size: tuple[Any, ...],
    stride: tuple[Any, ...],
    offset: Any,
    dtype: torch.dtype,
    device: torch.device,
    requires_grad: bool,
) -> FakeTensor:
    with no_dispatch(), torch.no_grad():
        first = at_work.first.get(number)
        if first is None:
            tensor = at_work.first[number] = meta_tensor(size, stride, offset, dtype, nbytes)
        elif first.dtype == dtype:
            tensor = first.as_strided(size, stride, offset)
        else:
            tensor = torch.empty(0, dtype=dtype, device=META)
            tensor.set_(first.untyped_storage(), offset, size, stride)
        return FakeTensor(at_work.mode, tensor.detach().requires_grad_(requires_grad), device)


def _sym_int(expr: Any, shape_env: Any, pytype: type, hint: Any) -> torch.SymInt:
    return torch.SymInt(SymNode(expr, shape_env, pytype, hint))  # pyright: ignore[reportCallIssue]


def _wrapper(cls: Any, inner: dict[str, Any], context: Any, size: tuple[Any, ...], stride: tuple[Any, ...]) -> Any:
    return cls.__tensor_unflatten__(inner, context, size, stride)


def _overload(namespace: str, name: str, overload: str) -> OpOverload:
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _packet(namespace: str, name: str) -> OpOverloadPacket:
    return getattr(getattr(torch.ops, namespace), name)
