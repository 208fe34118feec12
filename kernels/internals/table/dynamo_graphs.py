"""Undocumented API that ``internals/dynamo_graphs.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._dynamo.source",
        names=("AttrSource", "ConstantSource"),
        why="Every input that a pass adds needs a source: AOTAutograd asserts that inputs have one, and that no two "
        "are the same.",
        without="The passes cannot be imported, and with them the backend.",
    ),
    Internal(
        module="torch._guards",
        names=("Source",),
        why="The type of these.",
        without="The passes cannot be imported, and with them the backend.",
    ),
    Internal(
        module="torch._functorch._aot_autograd.frontend_utils",
        names=("_dynamo_source",),
        on_objects=True,
        why="Where Dynamo puts the source of an input and AOTAutograd looks for it. The passes work on a copy of the "
        "graph, and copying nodes does not copy it.",
        without="AOTAutograd finds no source, and compiling fails where a module has parameters.",
    ),
    Internal(
        module="torch._functorch._aot_autograd.frontend_utils",
        names=("_param_name_to_source",),
        on_objects=True,
        why="The sources of parameters that lie on the graph module, to be copied with it.",
        without="AOTAutograd finds no source of a parameter, and compiling fails.",
    ),
    Internal(
        module="torch._dynamo.output_graph",
        names=("_source_to_user_stacks",),
        on_objects=True,
        why="The lines of the program that inputs come from, for error messages of torch.export. Copied with the rest.",
        without="Messages lack those lines.",
    ),
    Internal(
        module="torch._functorch._aot_autograd.frontend_utils",
        names=("_dynamo_static_input_type",),
        on_objects=True,
        why="Caches and hoisted masks keep their address. Without this mark Inductor gives up CUDA graphs for a graph "
        "that writes to its inputs.",
        without="Inductor's own CUDA graphs are skipped; recordings of ours copy more inputs than they need to.",
    ),
)
