"""Undocumented API that ``internals/graphs.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_PASSES = "The passes cannot be imported, and with them the backend."

ENTRIES = (
    Internal(
        module="torch._ops",
        names=("OpOverload", "OpOverloadPacket", "HigherOrderOperator"),
        why="Distinguishes operators from Python functions among the targets of nodes.",
        without=_NO_PASSES,
    ),
    Internal(
        module="torch._C._nn",
        names=("linear", "scaled_dot_product_attention"),
        why="torch.nn.functional exports these functions, and some programs call them directly.",
        without=_NO_PASSES,
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("statically_known_true",),
        why="Whether two sizes are known to be equal. Comparing them would add a guard, so that other sizes would be "
        "compiled again.",
        without=_NO_PASSES,
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("free_symbols", "free_unbacked_symbols"),
        why="Whether a size depends on an input, or on data that only the device knows.",
        without=_NO_PASSES,
    ),
    Internal(
        module="torch.fx._lazy_graph_module",
        names=("_LazyGraphModule", "_LazyGraphModule.real_recompile"),
        why="A graph module whose code is generated when it is needed. Dynamo's own graphs are of this class; one of "
        "2,500 nodes takes a tenth of a second.",
        without=_NO_PASSES,
    ),
    Internal(
        module="torch.fx.experimental.sym_node",
        names=("SymNode.hint", "SymNode.has_hint"),
        why="How large an input is and how many tokens a step has, without a guard: this decides what is worth "
        "recording as a CUDA graph.",
        without="Decode steps on a CUDA device cannot be compiled.",
    ),
    Internal(
        module="torch.fx.experimental.sym_node",
        names=("_expr",),
        on_objects=True,
        why="The symbol that Inductor knows a size by, which is not always the one that the sizes of tensors have.",
        without="Layers are not compiled once for all, and compiling takes longer.",
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("ShapeEnv.create_symintnode",),
        why="A symbol as an input of a layer whose other inputs have sizes that are computed from it.",
        without="Layers are not compiled once for all, and compiling takes longer.",
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("ShapeEnv.create_symboolnode",),
        why="Whether a condition on sizes that a compiled layer relies on holds for the sizes of another layer.",
        without="Layers are not compiled once for all, and compiling takes longer.",
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("guards", "var_to_range"),
        on_objects=True,
        why="The conditions on sizes that compiling a layer has added, and the ranges of sizes: they have to be the "
        "same for two layers that share a compiled function.",
        without="Layers are not compiled once for all, and compiling takes longer.",
    ),
    Internal(
        module="torch.utils._sympy.printers",
        names=("PythonPrinter",),
        why="Converts symbolic sizes to Python functions, which are evaluated at every call: sympy's own evaluation "
        "takes a tenth of a millisecond.",
        without="Graphs with quantized caches cannot be compiled.",
    ),
    Internal(
        module="torch.fx.node",
        names=("Node._erased",),
        why="Dead nodes are erased together with inputs that only they used; a node may be reached twice.",
        without="Rewriting a graph fails with an AttributeError.",
    ),
    Internal(
        module="torch.fx.graph",
        names=("_lineno_map", "_prologue_start"),
        on_objects=True,
        why="Which line of a graph's code belongs to which node, for the lines of the user's program in a dump.",
        without="Dumping graphs fails with an AttributeError.",
    ),
)
