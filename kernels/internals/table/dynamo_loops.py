"""Undocumented API that ``internals/dynamo_loops.py`` uses."""

from __future__ import annotations

from .entry import Internal

_UNROLLED = "Loops over tokens or chunks of a prompt are unrolled, and the backend cannot be imported."
_VARIABLES = (
    "BuiltinVariable.call_function_handler_cache",
    "BuiltinVariable.call_range",
    "CellVariable",
    "ConstantVariable.create",
    "TensorVariable",
    "TupleVariable",
    "UserFunctionVariable.bind_args",
    "UserFunctionVariable.get_code",
)

ENTRIES = (
    Internal(
        module="torch._dynamo.variables",
        names=_VARIABLES,
        why="Dynamo's objects for values of the program. The call of range(...) with a symbolic length is wrapped, and "
        "the arguments of the function with the loop become those of one operator. torch.compiler.disable and "
        "allow_in_graph would need a mark on the function, and the first breaks the graph; torch's while_loop and scan "
        "need another program.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch._dynamo.variables.tensor",
        names=("SymNodeVariable",),
        why="A symbolic number of the program.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch._dynamo.variables.base",
        names=("VariableTracker.realize",),
        why="The base of these objects.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch._dynamo.variables.builder",
        names=("wrap_fx_proxy(tx, proxy)",),
        why="Puts the results of the operator into the program.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch._dynamo.symbolic_convert",
        names=(
            "InliningInstructionTranslator.inline_call(parent, func, args, kwargs)",
            "InstructionTranslator",
            "SpeculationLog.clear",
        ),
        why="The call of a function that has such a loop is replaced.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch._dynamo.symbolic_convert",
        names=(
            "f_code",
            "instruction_pointer",
            "instructions",
            "speculation_log",
            "traced_code",
            "tracing_context",
        ),
        on_objects=True,
        why="Where in a function Dynamo is, and the values of its variables.",
        without="Compiling a program with such a loop fails with an AttributeError.",
    ),
    Internal(
        module="torch._dynamo.side_effects",
        names=("SideEffects.load_cell(cellvar)",),
        why="The value of an argument that a comprehension reads, before Python 3.12.",
        without="Compiling a program with such a loop fails with an AttributeError.",
    ),
    Internal(
        module="torch._dynamo.exc",
        names=("RestartAnalysis(restart_reason)",),
        why="Starts the analysis again, to replace the call of a function that is being traced.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch._guards",
        names=("detect_fake_mode(inputs)",),
        why="Loops are tried with fake tensors of the mode of the graph.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch._subclasses.fake_tensor",
        names=("FakeTensorMode(allow_non_fake_inputs)",),
        why="A function is tried with other sizes, which are numbers.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch.fx.experimental.symbolic_shapes",
        names=("ShapeEnv.create_symintnode(sym, hint)", "ShapeEnv.suppress_guards"),
        why="Trying a loop adds no conditions on sizes, and its results have known sizes.",
        without=_UNROLLED,
    ),
    Internal(
        module="torch.utils._python_dispatch",
        names=("is_traceable_wrapper_subclass",),
        why="An operator cannot take quantized caches.",
        without=_UNROLLED,
    ),
)
