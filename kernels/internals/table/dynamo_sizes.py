"""Undocumented API that ``internals/dynamo_sizes.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._dynamo.variables.builder",
        names=(
            "record_automatic_dynamic(tx, name, e)",
            "process_automatic_dynamic(tx, name, entry, is_unspecialized_nn_module)",
        ),
        why="Every size and number of an input passes through these functions when Dynamo decides whether it is a "
        "symbol. They are wrapped, so that lengths are symbols in the first graph, not from the second length on, and "
        "floats of modules are constants. torch._dynamo.maybe_mark_dynamic would have to be called for each tensor of "
        "each call; torch.compile's dynamic=True makes heads symbols, too, and its shapes_spec (torch 2.13) fixes what "
        "it does not name.",
        without="The backend cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.pgo",
        names=("auto_dynamic", "FrameStateSizeEntry.scalar", "FrameStateSizeEntry.size"),
        why="What these functions return: for each size, the number seen, or that there were several.",
        without="Compiling fails with an AttributeError.",
    ),
    Internal(
        module="torch._dynamo.output_graph",
        names=("root_tx",),
        on_objects=True,
        why="The frame that is compiled: a float is a constant of the model that it is given.",
        without="Compiling fails with an AttributeError.",
    ),
    Internal(
        module="torch._dynamo.symbolic_convert",
        names=("f_locals",),
        on_objects=True,
        why="The arguments of this frame, of which one is the model.",
        without="Compiling fails with an AttributeError.",
    ),
)
