"""Undocumented API that ``internals/graph_pickling.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_TRACES = "Traces are not kept on disk: a new process traces its models."

ENTRIES = (
    Internal(
        module="torch._ops",
        names=("OpOverload", "OpOverloadPacket"),
        why="Operators among the targets of nodes are written by their names.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._ops",
        names=("_opname", "_overloadname", "_qualified_op_name"),
        on_objects=True,
        why="The parts of an operator's name.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._guards",
        names=("CompileContext", "TracingContext"),
        why="Which symbols the sizes of an input are, and the number of the compilation: AOTAutograd reads the sources "
        "of inputs only of graphs that have one.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._subclasses.fake_tensor",
        names=("FakeTensor", "FakeTensorMode"),
        why="The values of a graph's nodes.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.fx._lazy_graph_module",
        names=("_LazyGraphModule",),
        why="The class of Dynamo's graphs.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.fx.experimental.sym_node",
        names=("SymNode", "_expr", "_hint"),
        on_objects=True,
        why="A symbolic size is written as its expression, and made anew.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("ShapeEnv",),
        why="What is known of symbolic sizes is kept with the graph.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.utils._python_dispatch",
        names=("is_traceable_wrapper_subclass",),
        why="Quantized caches among the inputs are written as their inner tensors.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.output_graph",
        names=("_dynamo_source",),
        on_objects=True,
        why="Where an input comes from.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.variables.builder",
        names=("_dynamo_static_input_type",),
        on_objects=True,
        why="Whether an input keeps its address.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.storage",
        names=("_cdata",),
        on_objects=True,
        why="Tensors that share memory share it again.",
        without=_NO_TRACES,
    ),
)
