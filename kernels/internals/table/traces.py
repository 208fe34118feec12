"""Undocumented API that ``internals/traces.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_TRACES = "Traces are not kept on disk: a new process traces its models."

ENTRIES = (
    Internal(
        module="torch._dynamo.convert_frame",
        names=("compile_frame", "CheckFunctionManager"),
        why="The step of Dynamo that traces a frame. It is replaced for frames of this backend, to return what an "
        "earlier process has found; and the class that builds checks behind it, by one that remembers the guards.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.eval_frame",
        names=("innermost_backend",),
        why="Whether a frame is compiled with this backend, and with which options.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.guards",
        names=("CheckFunctionManager", "convert_int_to_concrete_values", "get_verbose_code_part"),
        why="Builds the checks of kept guards from the values of a call, as Dynamo does behind a trace, and says which "
        "lines of code they are from.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.guards",
        names=(
            "_get_closure_vars",
            "GuardBuilder.add_python_lambda_leaf_guard_to_root",
            "GuardManagerWrapper.populate_diff_guard_manager",
        ),
        why="Conditions on sizes that compiling a kept graph adds are checked as those that Dynamo has found.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("SYMPY_INTERP", "ShapeGuardPythonPrinter"),
        why="Such a condition as code that reads the sizes of a call's inputs, and the functions that the code calls.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.output_graph",
        names=("OutputGraphCommon", "OutputGraphGuardsState"),
        why="What guards are built from. In place of the first, behind a trace, stands an object with the attributes "
        "that Dynamo reads for statistics.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.package",
        names=("SerializedCode",),
        why="Bytecode with constants that marshal does not know, such as devices.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.bytecode_transformation",
        names=("unique_id", "_unique_id_counter"),
        why="Names of globals that Dynamo will not give to anything else.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo",
        names=("disable", "config"),
        why="Dynamo does not trace what it has compiled; its settings are part of the key of a trace.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._dynamo.utils",
        names=("counters",),
        why="The number of graphs, which Dynamo counts where it traces.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._guards",
        names=("Guard", "GuardsSet", "Source", "TracingContext", "tracing"),
        why="Guards, and the context in which a backend compiles a graph.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._C._dynamo.guards",
        names=("GlobalStateGuard",),
        why="torch's global settings are among the guards.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._subclasses.fake_tensor",
        names=("FakeTensorMode",),
        why="AOTAutograd makes fake tensors of a graph's inputs in a mode of its own, with the same symbolic sizes.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.utils._ordered_set",
        names=("OrderedSet",),
        why="The order in which guards are built decides in which order the checks stand, by which they are compared.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.utils._pytree",
        names=("tree_map",),
        why="Sizes and strides of inputs are nested like the inputs.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.utils._sympy.value_ranges",
        names=("bound_sympy",),
        why="Whether a condition on sizes that compiling adds follows from ranges that guards check.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch.utils.weak",
        names=("TensorWeakRef",),
        why="Guards hold tensors of the process in which they were made; a kept guard must not.",
        without=_NO_TRACES,
    ),
)
