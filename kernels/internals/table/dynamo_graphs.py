"""Undocumented API that ``internals/dynamo_graphs.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._dynamo.source",
        names=("AttrSource", "ConstantSource"),
        why="Every input that a pass adds needs a source: AOTAutograd asserts that all inputs have different sources.",
        without="The passes cannot be imported, and with them the backend.",
    ),
    Internal(
        module="torch._guards",
        names=("Source",),
        why="The type of these sources.",
        without="The passes cannot be imported, and with them the backend.",
    ),
    Internal(
        module="torch._functorch._aot_autograd.frontend_utils",
        names=("_dynamo_source",),
        on_objects=True,
        why="The attribute that holds the source of an input. The passes work on a copy of the graph, and copying "
        "nodes does not copy it.",
        without="AOTAutograd finds no source, and compiling fails if a module has parameters.",
    ),
    Internal(
        module="torch._functorch._aot_autograd.frontend_utils",
        names=("_param_name_to_source",),
        on_objects=True,
        why="The attribute of a graph module that holds the sources of its parameters; it has to be copied, too.",
        without="AOTAutograd finds no source of a parameter, and compiling fails.",
    ),
    Internal(
        module="torch._dynamo.output_graph",
        names=("_source_to_user_stacks",),
        on_objects=True,
        why="The source lines of inputs, for error messages of torch.export; they have to be copied, too.",
        without="Messages lack those lines.",
    ),
    Internal(
        module="torch._functorch._aot_autograd.frontend_utils",
        names=("_dynamo_static_input_type",),
        on_objects=True,
        why="Caches and hoisted masks keep their address. Without this mark Inductor skips CUDA graphs for a graph "
        "that writes to its inputs.",
        without="Inductor skips CUDA graphs; recordings of innerq_compile copy more inputs than necessary.",
    ),
)
