"""Loops of a program over ranges whose length is a symbol. See ``table/dynamo_loops.py``. Imports Dynamo.

Dynamo makes such a length a constant and runs the loop symbolically, iteration by iteration. Here a handler is asked
first, at the call of ``range``: it may put one operator into the graph that runs the whole loop. Dynamo then goes on
behind the loop. Before that, if the loop is in a function that the program calls, the analysis starts again, and the
handler is asked at the call of the function.

    for i in range(s0 // 64):                     state, = operator([out], [x, state], [s0 // 64], '...')
        out[:, i] = x[:, i] @ state        ->
        state = state + x[:, i]
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.bytecode_analysis import livevars_analysis
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.exc import RestartAnalysis
from torch._dynamo.symbolic_convert import InliningInstructionTranslator, InstructionTranslator
from torch._dynamo.variables import (
    BuiltinVariable,
    CellVariable,
    ConstantVariable,
    ConstDictVariable,
    ListVariable,
    TensorVariable,
    TupleVariable,
    UserFunctionVariable,
)
from torch._dynamo.variables.base import ValueMutationNew, VariableTracker
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._dynamo.variables.tensor import SymNodeVariable
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .graphs import size_hint

_Found = TypeVar("_Found")

__all__ = [
    "Call",
    "Handler",
    "Larger",
    "Loop",
    "Refused",
    "Replacement",
    "Value",
    "larger",
    "remembered",
    "same_sizes",
    "tried",
    "use_loops",
]

#: What stands between a loop and the instruction behind it, by version of Python: it takes the iterator off the stack.
_ENDS = {"END_FOR", "POP_TOP", "POP_ITER"}


class Refused(Exception):
    """Why a loop cannot be one operator, for the user."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the program while Dynamo traces it.

    Attributes:
        example: a fake tensor, a symbolic number or a constant; None for what holds others.
        items: what is in a sequence, else None.
        kind: ``list`` or ``tuple``, if it is a sequence.
        named: what is in a dict, else None.
        node: what identifies a tensor: the same tensor has the same node.
        variable: Dynamo's object for it; None for a constant that was not in the program.
    """

    example: Any
    items: tuple[Value, ...] | None = None
    kind: str = ""
    named: Mapping[str, Value] | None = None
    node: Any = None
    variable: Any = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """The operator that runs a loop.

    Attributes:
        operator: an operator that returns a list of tensors.
        args: its arguments: constants, values, and lists of values.
        written: tensors that its first results are copied to.
        outcome: what the program gets: nested lists and tuples of values and of indices of results of the operator.
        names: the local variables that get the items of ``outcome``, if it is a loop.
    """

    operator: Any
    args: Sequence[Any]
    written: Sequence[Value]
    outcome: Any
    names: tuple[str, ...] = ()


class Loop:
    """A loop over a range whose length is a symbol, where Dynamo has reached it.

    Attributes:
        code: the code of the function with the loop.
        globals: its global variables.
        line: the line of the loop.
        range: start, stop and step.
    """

    def __init__(self, tx: Any, args: Sequence[Any], at: int) -> None:
        self.code: types.CodeType = tx.f_code
        self.globals: dict[str, Any] = tx.f_globals
        self._tx, self._at = tx, at
        self.line: int = tx.current_instruction.positions.lineno if _has_positions(tx) else tx.lineno
        values = [_value(arg, "a bound of its range") for arg in args]
        start, step = Value(0), Value(1)
        self.range = (start, values[0], step) if len(values) == 1 else (*values, step)[:3]

    def known(self, name: str) -> bool:
        """Whether a local variable has a value."""
        return name in self._tx.symbolic_locals

    def value(self, path: str) -> Value | None:
        """The value of a local variable or of its attribute, such as ``self.size``; None if it is of another kind.

        Raises:
            Refused: if it is a tensor that an operator cannot take.
        """
        name, *attributes = path.split(".")
        variable = self._tx.symbolic_locals[name].realize()
        for attribute in attributes:
            getter, named = VariableTracker.build(self._tx, getattr), ConstantVariable.create(attribute)
            variable = getter.call_function(self._tx, [variable, named], {}).realize()
        try:
            return _value(variable, path)
        except TypeError:
            return None

    def live(self, last: int | None) -> set[str]:
        """The local variables that are read behind the loop.

        Args:
            last: the last line of the statement behind the loop that the operator computes, too; None without one.
        """
        self._end = self._behind(last)
        return livevars_analysis(self._tx.instructions, self._tx.instructions[self._end])

    def replace(self, by: Replacement) -> VariableTracker:
        """Put an operator into the graph in place of the loop. Returns what stands for its range."""
        for name, value in zip(by.names, _emit(self._tx, by).items, strict=True):
            self._tx.symbolic_locals[name] = value
        return _Done(self._end)

    def _behind(self, last: int | None) -> int:
        instructions = self._tx.instructions
        at = self._tx.indexof[instructions[self._at].target]
        if instructions[at].opname == "END_FOR":
            at += 1
            while instructions[at].opname in _ENDS - {"END_FOR"}:
                at += 1
        if last is None:
            return at
        first = line = _line(instructions[at])
        if first is None or not _has_positions(self._tx):
            raise Refused("this version of Python does not tell lines of instructions")
        while line is None or first <= line <= last:
            at += 1
            line = _line(instructions[at])
        return at


class Call:
    """A call of a function that has a loop over a range of symbolic length.

    Attributes:
        code: the code of the function.
        globals: its global variables.
    """

    def __init__(self, tx: Any, function: Any, args: Any, kwargs: Any) -> None:
        self.code: types.CodeType = function.get_code()
        self.globals: dict[str, Any] = function.get_globals()
        self._tx, self._function, self._args, self._kwargs = tx, function, args, kwargs

    def values(self) -> Iterator[tuple[str, Value | None]]:
        """The arguments by their names in the function; None for one that is no tensor, number, list, tuple or dict."""
        bound = self._function.bind_args(self._tx, list(self._args), dict(self._kwargs))
        for name in inspect.getargs(self.code)[0] + [name for name in inspect.getargs(self.code)[1:] if name]:
            variable = bound[name]
            if isinstance(variable, CellVariable):  # a comprehension reads it, before Python 3.12
                variable = self._tx.output.side_effects.load_cell(variable)
            try:
                yield name, _value(variable, name)
            except TypeError:
                yield name, None

    def replace(self, by: Replacement) -> VariableTracker:
        """Put an operator into the graph in place of the call. Returns what the function returns."""
        self._tx.output.tracing_context.traced_code.append(self.code)  # by which a kept trace is found to be outdated
        return _emit(self._tx, by)


@dataclasses.dataclass(frozen=True)
class Handler:
    """What becomes of loops: functions that return the operator to run, or None where Dynamo goes on as ever."""

    of_loop: Callable[[Loop], Replacement | None]
    of_call: Callable[[Call], Replacement | None]


def _value(variable: Any, what: str) -> Value:
    variable = variable.realize()
    kind = type(variable)
    if kind is TensorVariable:
        proxy = variable.as_proxy()
        example = proxy.node.meta["example_value"]
        if is_traceable_wrapper_subclass(example) or example.layout is not torch.strided:
            raise Refused(f"it reads {what}, a {type(example).__name__}")
        return Value(example, node=proxy.node, variable=variable)
    if isinstance(variable, SymNodeVariable):
        number = variable.sym_num
        if not isinstance(number, (int, torch.SymInt)):
            raise Refused(f"it reads {what}, a symbolic {type(number).__name__}")
        return Value(number, variable=variable)
    if kind in (ListVariable, TupleVariable):
        items = tuple(_value(item, what) for item in variable.items)
        return Value(None, items, "list" if kind is ListVariable else "tuple", variable=variable)
    if kind is ConstDictVariable:
        named = {key.vt.as_python_constant(): _value(item, what) for key, item in variable.items.items()}
        if not all(type(name) is str for name in named):
            raise TypeError(what)
        return Value(None, named=named, variable=variable)
    if variable.is_python_constant():
        constant = variable.as_python_constant()
        if constant is None or type(constant) in (bool, int, float, str, torch.dtype, torch.device):
            return Value(constant, variable=variable)
    raise TypeError(what)


def _emit(tx: Any, by: Replacement) -> Any:
    args = tuple(_proxies(by.args))
    result: Any = wrap_fx_proxy(tx, tx.output.create_proxy("call_function", by.operator, args, {}))
    for index, value in enumerate(by.written):
        value.variable.call_method(tx, "copy_", [result.items[index]], {})
    return _variable(by.outcome, result.items)


def _variable(outcome: Any, results: Sequence[Any]) -> Any:
    if isinstance(outcome, int):
        return results[outcome]
    if isinstance(outcome, Value):
        return ConstantVariable.create(outcome.example) if outcome.variable is None else outcome.variable
    items = [_variable(item, results) for item in outcome]
    return TupleVariable(items) if isinstance(outcome, tuple) else ListVariable(items, mutation_type=ValueMutationNew())


#: By the identity of the backend, which need not be hashable. Backends are held, so that no other gets its identity.
_OF_BACKEND: dict[int, tuple[Any, Handler]] = {}


def use_loops(backend: Callable[..., Any], handler: Handler) -> None:
    """Ask ``handler`` for each loop over a range of symbolic length in programs that are compiled with a backend."""
    _OF_BACKEND[id(backend)] = backend, handler
    original: Any = BuiltinVariable.call_range
    if hasattr(original, "__wrapped__"):
        return
    setattr(BuiltinVariable, "call_range", _asking(original))  # noqa: B010
    BuiltinVariable.call_function_handler_cache.clear()  # which holds the function from before
    inline = InliningInstructionTranslator.__dict__["inline_call"].__func__
    setattr(InliningInstructionTranslator, "inline_call", classmethod(_calling(inline)))  # noqa: B010
    for translator in (InstructionTranslator, InliningInstructionTranslator):
        _skip_loops(translator.dispatch_table)


class _Done(VariableTracker):
    """Stands for the range of a loop that an operator has run."""

    def __init__(self, behind: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.behind = behind


def _asking(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call_range(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        handler = None
        if not kwargs and 1 <= len(args) <= 3 and any(isinstance(arg.realize(), SymNodeVariable) for arg in args):
            handler = _of(tx)
        if handler is not None and type(tx) in (InstructionTranslator, InliningInstructionTranslator):
            at = tx.instruction_pointer
            if [inst.opname for inst in tx.instructions[at : at + 2]] == ["GET_ITER", "FOR_ITER"]:
                if type(tx) is InliningInstructionTranslator and tx.f_code not in _asked(tx):
                    _asked(tx).add(tx.f_code)
                    tx.speculation_log.clear()
                    raise RestartAnalysis(restart_reason=f"{tx.f_code.co_name} has a loop of symbolic length")
                loop = Loop(tx, args, at + 1)
                if (found := handler.of_loop(loop)) is not None:
                    return loop.replace(found)
        return original(self, tx, *args, **kwargs)

    return call_range


def _calling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def inline_call(cls: Any, parent: Any, func: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        asked = getattr(parent.speculation_log, _ASKED, None)
        if asked and cls is InliningInstructionTranslator and func.get_code() in asked:
            handler = _of(parent)
            if handler is not None and isinstance(func, UserFunctionVariable):
                call = Call(parent, func, args, kwargs)
                if (found := handler.of_call(call)) is not None:
                    return call.replace(found)
        return original(cls, parent, func, args, kwargs, *rest, **options)

    return inline_call


#: An attribute of Dynamo's record of one compilation, which outlives restarts: the code of functions with such loops.
_ASKED = "_innerq_functions_with_loops"


def _asked(tx: Any) -> set[types.CodeType]:
    log = tx.speculation_log
    if not hasattr(log, _ASKED):
        setattr(log, _ASKED, set())
    return getattr(log, _ASKED)


def _skip_loops(table: list[Any]) -> None:
    get_iter, for_iter = dis.opmap["GET_ITER"], dis.opmap["FOR_ITER"]
    original_get, original_for = table[get_iter], table[for_iter]

    def get(self: Any, inst: Any) -> None:
        if not isinstance(self.stack[-1], _Done):
            original_get(self, inst)

    def step(self: Any, inst: Any) -> None:
        if isinstance(self.stack[-1], _Done):
            self.instruction_pointer = self.pop().behind
        else:
            original_for(self, inst)

    table[get_iter], table[for_iter] = get, step


def _of(tx: Any) -> Handler | None:
    """The handler of the backend that a program is compiled with."""
    backend: Any = innermost_backend(tx.output.compiler_fn)
    found = _OF_BACKEND.get(id(getattr(backend, "compiler_fn", backend)))
    return None if found is None else found[1]


def _has_positions(tx: Any) -> bool:
    return _line(tx.current_instruction) is not None


def _line(inst: Any) -> int | None:
    return inst.positions.lineno if getattr(inst, "positions", None) is not None else None


def _proxies(args: Any) -> Any:
    if isinstance(args, (list, tuple)):
        return [_proxies(arg) for arg in args]
    if not isinstance(args, Value):
        return args
    return args.variable.as_proxy() if isinstance(args.example, (torch.Tensor, torch.SymInt)) else args.example


# --- trying a loop ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tried(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within the block, operations on fake tensors like these put no conditions on sizes into guards."""
    mode = detect_fake_mode(tensors)
    if mode is None:
        raise Refused("it reads no tensor")
    env = mode.shape_env
    with (
        enable_python_dispatcher(),
        mode,
        torch.inference_mode(False),  # whose tensors do not count what is written to them
        torch.no_grad(),
        contextlib.nullcontext() if env is None else env.suppress_guards(),
    ):
        yield


def same_sizes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two fake tensors have the same shape, whatever the values of symbols."""
    if one.dim() != other.dim():
        return False
    return all(statically_known_true(a == b) for a, b in zip(one.shape, other.shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Larger:
    """Fake tensors whose sizes are numbers: three times those that symbols have in the call that is compiled.

    Attributes:
        mode: in which they are fake.
        tensors: like given ones.
        numbers: like given ones.
        shapes: the shapes that given results have with these sizes.
    """

    mode: Any
    tensors: list[torch.Tensor]
    numbers: list[int]
    shapes: list[tuple[int, ...]]


def larger(tensors: Sequence[torch.Tensor], numbers: Sequence[Any], results: Sequence[torch.Tensor]) -> Larger:
    """Fake tensors and numbers like these with other sizes."""

    def of(size: Any) -> int:
        if not isinstance(size, torch.SymInt):
            return size
        env = size.node.shape_env
        return int(size.node.expr.subs({symbol: 3 * _hint(env, symbol) for symbol in size.node.expr.free_symbols}))

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made = []
    with mode:
        for tensor in tensors:
            shape, strides = list(map(of, tensor.size())), list(map(of, tensor.stride()))
            made.append(torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device))
    return Larger(mode, made, list(map(of, numbers)), [tuple(map(of, result.shape)) for result in results])


def _hint(env: Any, symbol: Any) -> int:
    return size_hint(env.create_symintnode(symbol, hint=None))


# --- remembering ------------------------------------------------------------------------------------------------------

#: By the symbols of a graph: what was found of calls with arguments alike, such as those of other layers.
_REMEMBERED: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def remembered(key: str, tensors: Sequence[torch.Tensor], numbers: Sequence[Any], find: Callable[[], _Found]) -> _Found:
    """What ``find()`` returns, or has returned for fake tensors and numbers of the same sizes, strides and dtypes."""
    mode = detect_fake_mode(tensors)
    if mode is None or mode.shape_env is None:
        return find()
    found = _REMEMBERED.setdefault(mode.shape_env, {})
    kinds = [(str(t.dtype), str(t.device), *map(_text, t.shape), "|", *map(_text, t.stride())) for t in tensors]
    whole = (key, *kinds, *map(_text, numbers))
    if whole not in found:
        found[whole] = find()
    return found[whole]


def _text(size: Any) -> str:
    return str(size.node.expr if isinstance(size, torch.SymInt) else size)
