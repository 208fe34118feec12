"""Loops of a program over ranges whose length is a symbol. See ``table/dynamo_loops.py``. Imports Dynamo.

Dynamo makes such a length a constant and runs the loop symbolically, iteration by iteration. Here, at the call of
``range``, the analysis starts again if the loop is in a function that the program calls, and a handler is asked at the
call of this function: it may put one operator into the graph that runs the function.

    def f(x, state):
        for i in range(s0 // 64):             ->      out, state = operator([x, state], [s0 // 64], '...')
            ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch._dynamo.exc import RestartAnalysis
from torch._dynamo.symbolic_convert import InliningInstructionTranslator, InstructionTranslator
from torch._dynamo.variables import (
    BuiltinVariable,
    CellVariable,
    ConstantVariable,
    TensorVariable,
    TupleVariable,
    UserFunctionVariable,
)
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._dynamo.variables.tensor import SymNodeVariable
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .dynamo_backends import OfBackends
from .graphs import is_constant_size, size_hint, statically_known_true
from .tensors import enable_python_dispatcher

_Found = TypeVar("_Found")

__all__ = [
    "Call",
    "Handler",
    "OtherSizes",
    "Refused",
    "Replacement",
    "Value",
    "other_sizes",
    "remembered",
    "tried",
    "use_loops",
]


class Refused(Exception):
    """Why a loop cannot be one operator, for the user."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the program while Dynamo traces it.

    Attributes:
        example: a fake tensor, a symbolic number or a constant.
        node: what identifies a tensor: the same tensor has the same node.
        variable: Dynamo's object for it; None for a constant that was not in the program.
    """

    example: Any
    node: Any = None
    variable: Any = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """The operator that runs a function.

    Attributes:
        operator: an operator that returns a list of tensors.
        args: its arguments: constants, values, and lists of values.
        outcome: what the program gets: a value, the index of a result of the operator, or a tuple of such.
    """

    operator: Any
    args: Sequence[Any]
    outcome: Any


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

    def values(self, names: Sequence[str]) -> Iterator[tuple[str, Value | None]]:
        """Arguments by their names in the function; None for one that is no tensor, number or constant.

        Raises:
            Refused: if there is a tensor that an operator cannot take.
        """
        bound = self._function.bind_args(self._tx, list(self._args), dict(self._kwargs))
        for name in names:
            variable = bound[name]
            if isinstance(variable, CellVariable):  # a comprehension reads it, before Python 3.12
                variable = self._tx.output.side_effects.load_cell(variable)
            yield name, _value(variable, name)

    def replace(self, by: Replacement) -> VariableTracker:
        """Put an operator into the graph in place of the call. Returns what the function returns."""
        self._tx.output.tracing_context.traced_code.append(self.code)  # by which a kept trace is found to be outdated
        return _emit(self._tx, by)


@dataclasses.dataclass(frozen=True)
class Handler:
    """What becomes of loops.

    Attributes:
        of_call: returns the operator that runs a call of a function, or None where Dynamo goes on as ever.
        unrolled: is told of the function of a loop with which Dynamo goes on.
    """

    of_call: Callable[[Call], Replacement | None]
    unrolled: Callable[[types.CodeType], None]


def _value(variable: Any, what: str) -> Value | None:
    variable = variable.realize()
    if type(variable) is TensorVariable:
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
    if variable.is_python_constant():
        constant = variable.as_python_constant()
        if constant is None or type(constant) in (bool, int, float, str, torch.dtype, torch.device):
            return Value(constant, variable=variable)
    return None


def _emit(tx: Any, by: Replacement) -> Any:
    args = tuple(_proxies(by.args))
    result: Any = wrap_fx_proxy(tx, tx.output.create_proxy("call_function", by.operator, args, {}))
    return _variable(by.outcome, result.items)


def _variable(outcome: Any, results: Sequence[Any]) -> Any:
    if isinstance(outcome, int):
        return results[outcome]
    if isinstance(outcome, Value):
        return ConstantVariable.create(outcome.example) if outcome.variable is None else outcome.variable
    return TupleVariable([_variable(item, results) for item in outcome])


_HANDLERS: OfBackends[Handler] = OfBackends()


def use_loops(backend: Callable[..., Any], handler: Handler) -> None:
    """Ask ``handler`` for each loop over a range of symbolic length in programs that are compiled with a backend."""
    _HANDLERS.set(backend, handler)
    original: Any = BuiltinVariable.call_range
    if hasattr(original, "__wrapped__"):
        return
    setattr(BuiltinVariable, "call_range", _asking(original))  # noqa: B010
    BuiltinVariable.call_function_handler_cache.clear()  # which holds the function from before
    inline = InliningInstructionTranslator.__dict__["inline_call"].__func__
    setattr(InliningInstructionTranslator, "inline_call", classmethod(_calling(inline)))  # noqa: B010


def _asking(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call_range(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        handler = None
        if not kwargs and 1 <= len(args) <= 3 and any(isinstance(arg.realize(), SymNodeVariable) for arg in args):
            handler = _HANDLERS.of(tx)
        if handler is not None and type(tx) in (InstructionTranslator, InliningInstructionTranslator):
            at = tx.instruction_pointer
            if [inst.opname for inst in tx.instructions[at : at + 2]] == ["GET_ITER", "FOR_ITER"]:
                if type(tx) is InliningInstructionTranslator and tx.f_code not in _asked(tx):
                    _asked(tx).add(tx.f_code)
                    tx.speculation_log.clear()
                    raise RestartAnalysis(restart_reason=f"{tx.f_code.co_name} has a loop of symbolic length")
                handler.unrolled(tx.f_code)
        return original(self, tx, *args, **kwargs)

    return call_range


def _calling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def inline_call(cls: Any, parent: Any, func: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        asked = getattr(parent.speculation_log, _ASKED, None)
        if asked and cls is InliningInstructionTranslator and func.get_code() in asked:
            handler = _HANDLERS.of(parent)
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


def _proxies(args: Any) -> Any:
    if isinstance(args, (list, tuple)):
        return [_proxies(arg) for arg in args]
    if not isinstance(args, Value):
        return args
    return args.variable.as_proxy() if isinstance(args.example, (torch.Tensor, torch.SymInt)) else args.example


# --- trying a loop ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tried(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within the block, operations on fake tensors like these put no conditions on sizes into guards.

    A condition of the program on a symbol refuses it: with another size, the program would do something else.
    """
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
        _without_conditions(),
    ):
        yield


@contextlib.contextmanager
def _without_conditions() -> Iterator[None]:
    """Within the block and its thread, a symbol is no condition or plain number outside of PyTorch."""
    thread = threading.get_ident()

    def refusing(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def convert(symbol: Any) -> Any:
            if threading.get_ident() == thread and not _is_known(symbol) and _is_of_program(sys._getframe(1)):
                raise Refused("it has a condition on a symbolic size, or makes it a plain number")
            return original(symbol)

        return convert

    with _CONVERTING:
        saved = [(kind, name, vars(kind)[name]) for kind in _SYMBOLS for name in _CONVERSIONS if name in vars(kind)]
        try:
            for kind, name, original in saved:
                setattr(kind, name, refusing(original))
            yield
        finally:
            for kind, name, original in saved:
                setattr(kind, name, original)


_SYMBOLS = (torch.SymBool, torch.SymInt, torch.SymFloat)
_CONVERSIONS = ("__bool__", "__int__", "__index__", "__float__", "__round__", "__trunc__")
_CONVERTING = threading.RLock()
_TORCH = os.path.dirname(torch.__file__) + os.sep


def _is_known(symbol: Any) -> bool:
    """Whether a symbol has one value, whatever the sizes in a call."""
    if isinstance(symbol, torch.SymBool):
        return statically_known_true(symbol) or statically_known_true(torch.sym_not(symbol))
    return is_constant_size(symbol)


def _is_of_program(frame: types.FrameType | None) -> bool:
    """Whether a frame is outside of PyTorch. The operators of symbols, in its top module, count as their caller."""
    while frame is not None and frame.f_code.co_filename == torch.__file__:
        frame = frame.f_back
    return frame is None or not frame.f_code.co_filename.startswith((_TORCH, "<string>"))


@dataclasses.dataclass(frozen=True)
class OtherSizes:
    """Fake tensors whose sizes are numbers: others than those that symbols have in the call that is compiled.

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


def other_sizes(
    tensors: Sequence[torch.Tensor], numbers: Sequence[Any], results: Sequence[torch.Tensor]
) -> Iterator[OtherSizes]:
    """Fake tensors and numbers like these with the smallest sizes, and with larger ones, odd and even."""
    for choose in (lambda hint: min(hint, 2), lambda hint: 3 * hint, lambda hint: 3 * hint + 1):

        def of(size: Any, choose: Callable[[int], int] = choose) -> int:
            if not isinstance(size, torch.SymInt):
                return size
            env, expr = size.node.shape_env, size.node.expr
            return int(expr.subs({symbol: choose(_hint(env, symbol)) for symbol in expr.free_symbols}))

        mode = FakeTensorMode(allow_non_fake_inputs=True)
        made = []
        with mode:
            for tensor in tensors:
                shape, strides = list(map(of, tensor.size())), list(map(of, tensor.stride()))
                made.append(torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device))
        yield OtherSizes(mode, made, list(map(of, numbers)), [tuple(map(of, result.shape)) for result in results])


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
