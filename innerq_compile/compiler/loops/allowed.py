"""What a function may do that one operator runs: compute tensors from tensors and numbers, and nothing else.

All that is not named here is refused: what an operator does besides its results is lost or done at another time, and a
function is tried with fake tensors, which nothing must keep. Functions that it calls by a global name are held to the
same rules, and have neither loops nor writes.
"""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ...kernels.internals.dynamo_loops import Refused
from .finding import definition_of, place_of

_STATEMENTS = (ast.Assign, ast.AugAssign, ast.For, ast.If, ast.Return, ast.Expr, ast.Pass)
_EXPRESSIONS = (
    *(ast.Attribute, ast.BinOp, ast.BoolOp, ast.Call, ast.Compare, ast.Constant, ast.GeneratorExp, ast.IfExp, ast.List),
    *(ast.ListComp, ast.Name, ast.Slice, ast.Subscript, ast.Tuple, ast.UnaryOp),
)
_PARTS = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context, ast.keyword, ast.comprehension)
#: What the body of a loop of symbolic length has: no branch, and nothing that is a loop of its own.
_IN_LOOP = (
    *(ast.Assign, ast.AugAssign, ast.Attribute, ast.BinOp, ast.Call, ast.Constant, ast.Name, ast.Slice, ast.Subscript),
    *(ast.Tuple, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context, ast.keyword),
)
_BUILTINS = frozenset("range len min max int float bool tuple abs zip enumerate".split())  # noqa: SIM905
_ATTRIBUTES = frozenset(("shape", "dtype", "device", "ndim", "T", "mT"))
#: Computations of torch as functions and as methods. They write nothing, draw no random numbers, keep no state, and
#: the sizes of their results do not depend on values.
_BOTH = frozenset(
    """abs add amax amin bmm clamp clone cos cumprod cumsum diagonal div exp expm1 flatten flip log log1p logcumsumexp
    logsumexp matmul maximum mean minimum movedim mul neg permute pow reciprocal relu repeat_interleave reshape rsqrt
    sigmoid sin softmax sqrt square squeeze sub sum tanh transpose tril triu unflatten unsqueeze""".split()  # noqa: SIM905
)
_TORCH = _BOTH | frozenset(
    "arange cat concat einsum eye full full_like ones ones_like stack where zeros zeros_like".split()  # noqa: SIM905
)
_FUNCTIONAL = frozenset("elu gelu logsigmoid normalize pad relu sigmoid silu softmax softplus tanh".split())  # noqa: SIM905
_FUNCTIONS = frozenset(
    (
        *(f"torch.{name}" for name in _TORCH),
        *(f"torch.nn.functional.{name}" for name in _FUNCTIONAL),
        "torch.linalg.solve_triangular",
    )
)
_METHODS = _BOTH | frozenset(
    """bfloat16 contiguous dim double expand expand_as float half masked_fill mm new_full new_ones new_zeros repeat size
    t to type_as view view_as""".split()  # noqa: SIM905
)
_MODULES = {
    id(module): name
    for name, module in {
        "torch": torch,
        "torch.linalg": torch.linalg,
        "torch.nn": torch.nn,
        "torch.nn.functional": torch.nn.functional,
    }.items()
}
#: Functions that ask how the program is run. Nothing exports a graph that this backend compiles.
_QUESTIONS = frozenset(("transformers.utils.import_utils.is_torchdynamo_exporting",))


def check(function: ast.FunctionDef, names: dict[str, Any]) -> list[ast.FunctionDef]:
    """Find nothing in a function but what is allowed.

    Args:
        function: its definition.
        names: its global variables.

    Returns:
        The definitions of the functions that it calls, those that they call included.

    Raises:
        Refused: if there is something else.
    """
    called: dict[int, ast.FunctionDef] = {}
    _Check(function, names, called, False).run()
    return list(called.values())


def parameters(function: ast.FunctionDef) -> list[str]:
    """The names of the arguments, without those of ``*args`` and ``**kwargs``, which a function here never reads."""
    arguments = function.args
    return [arg.arg for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def is_loop(node: ast.AST) -> bool:
    """Whether a loop may have a symbolic length: its iterations differ in nothing but the elements of tensors.

    Other loops have to be over a constant range.
    """
    if not isinstance(node, ast.For) or not isinstance(node.target, ast.Name):
        return False
    nodes = list(_nodes(node.body))
    if not all(isinstance(inner, _IN_LOOP) for inner in nodes):
        return False
    index = {id(name) for inner in nodes if isinstance(inner, ast.Subscript) for name in elements(inner)}
    return all(
        id(name) in index for name in nodes if isinstance(name, ast.Name) and name.id == node.target.id
    ) and not any(isinstance(name.ctx, ast.Store) and name.id == node.target.id for name in _names(nodes))


def elements(node: ast.Subscript) -> list[ast.Name]:
    """The names that choose an element: ``i`` in ``x[:, i]``."""
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return [item for item in items if isinstance(item, ast.Name)]


def _nodes(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for statement in statements:
        yield from ast.walk(statement)


def _names(nodes: Iterable[ast.AST]) -> Iterator[ast.Name]:
    return (node for node in nodes if isinstance(node, ast.Name))


class _Check:
    def __init__(
        self, function: ast.FunctionDef, names: dict[str, Any], called: dict[int, ast.FunctionDef], helper: bool
    ) -> None:
        self._function, self._globals, self._called, self._helper = function, names, called, helper
        self._nodes = list(_nodes(function.body))
        self._params = set(parameters(function))
        extra = (function.args.vararg, function.args.kwarg)
        self._unread = {argument.arg for argument in extra if argument is not None}
        stored = {name.id for name in _names(self._nodes) if not isinstance(name.ctx, ast.Load)}
        self._local = self._params | stored
        #: Parts of calls and of paths such as ``torch.nn``, which are no values of their own.
        self._resolved: set[int] = set()

    def run(self) -> None:
        self._check_header()
        for node in self._nodes:
            self._check_kind(node)
        for node in self._nodes:
            if isinstance(node, ast.Call):
                self._check_call(node)
        for node in self._nodes:
            if isinstance(node, ast.Attribute) and id(node) not in self._resolved:
                self._check_attribute(node)
        for node in _names(self._nodes):
            if node.id in self._unread:
                raise Refused(f"it reads {node.id}, arguments of any name or number")
            if node.id not in self._local and id(node) not in self._resolved:
                raise Refused(f"it reads the global {node.id}")
        self._check_targets()

    def _check_header(self) -> None:
        inner = {
            name.id
            for part in self._nodes
            if isinstance(part, ast.comprehension)
            for name in _names(ast.walk(part.target))
        }
        if hidden := (self._local & _BUILTINS) | (inner & self._globals.keys()):
            raise Refused(f"it has a variable {min(hidden)}, which is a global name as well")
        if any(name.startswith("__innerq") for name in self._local):
            raise Refused("it has a variable with a name of this package")

    def _check_kind(self, node: ast.AST) -> None:
        kind = type(node).__name__.lower()
        if not isinstance(node, (*_STATEMENTS, *_EXPRESSIONS, *_PARTS)):
            raise Refused(f"it has a statement or expression of the kind {kind}")
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            raise Refused("it has a call whose result it drops")
        if isinstance(node, ast.Constant) and not isinstance(
            node.value, (type(None), bool, int, float, str, type(...))
        ):
            raise Refused(f"it has a constant {node.value!r}")
        if isinstance(node, ast.comprehension) and node.is_async:
            raise Refused("it has an asynchronous loop")
        if isinstance(getattr(node, "ctx", None), ast.Del):
            raise Refused("it deletes a variable")
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            raise Refused(f"it assigns the attribute {ast.unparse(node)}")
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and not isinstance(node.value, ast.Name):
            raise Refused(f"it writes {ast.unparse(node)}")
        writes = isinstance(node, ast.AugAssign) or (
            isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        )
        if self._helper and (writes or isinstance(node, ast.For)):
            raise Refused(f"it calls {self._function.name}, which has a loop or writes a value")
        if isinstance(node, ast.For):
            if node.orelse or any(isinstance(inner, ast.Return) for inner in _nodes(node.body)):
                raise Refused("a loop has an else, or returns")
            if not isinstance(node.target, ast.Name) or not _is_range(node.iter):
                raise Refused("it has a loop that is not over range(...)")

    def _check_call(self, node: ast.Call) -> None:
        if any(keyword.arg is None for keyword in node.keywords):
            raise Refused("it calls with arguments of any name")
        if any(keyword.arg == "out" for keyword in node.keywords):
            raise Refused("it writes to the result of another call")
        found = self._resolve(node.func)
        if found is None:
            if not isinstance(node.func, ast.Attribute) or node.func.attr not in _METHODS:
                raise Refused(f"it calls {ast.unparse(node.func)}")
            self._resolved.add(id(node.func))
        elif isinstance(found, str):
            if found not in _FUNCTIONS:
                raise Refused(f"it calls {found}")
        else:
            self._check_function(found, node)

    def _check_function(self, found: Any, node: ast.Call) -> None:
        what = ast.unparse(node.func)
        if what in _BUILTINS and found is getattr(builtins, what):
            return
        if (
            what in _BUILTINS
            or not isinstance(found, types.FunctionType)
            or found.__closure__
            or hasattr(found, "__wrapped__")
        ):
            raise Refused(f"it calls {what}, which is no plain function")
        if f"{found.__module__}.{found.__qualname__}" in _QUESTIONS and not node.args and not node.keywords:
            return
        defaults = (*(found.__defaults__ or ()), *(found.__kwdefaults__ or {}).values())
        if not all(value is None or type(value) in (bool, int, float, str, torch.dtype) for value in defaults):
            raise Refused(f"it calls {what}, which has a default that may change")
        if id(found) not in self._called:
            definition = definition_of(place_of(found.__code__), found.__globals__, found.__code__)
            self._called[id(found)] = definition
            _Check(definition, found.__globals__, self._called, True).run()

    def _check_attribute(self, node: ast.Attribute) -> None:
        found = self._resolve(node)
        if found is None:
            if node.attr not in _ATTRIBUTES:
                raise Refused(f"it reads the attribute {ast.unparse(node)}")
        elif not isinstance(found, (torch.dtype, torch.memory_format, float)):
            raise Refused(f"it reads {ast.unparse(node)}")

    def _check_targets(self) -> None:
        """Names of loop variables stand for nothing else, and are not read behind their loops."""
        loops = [node for node in self._nodes if isinstance(node, ast.For)]
        targets = {node.target.id for node in loops if isinstance(node.target, ast.Name)}
        if targets & self._params:
            raise Refused("a loop variable is an argument as well")
        inside: dict[str, set[int]] = {name: set() for name in targets}
        for node in loops:
            assert isinstance(node.target, ast.Name)
            inside[node.target.id].update(id(name) for name in _names(_nodes([node.target, *node.body])))
        for name in _names(self._nodes):
            own = any(name is node.target for node in loops)
            if name.id in targets and (
                id(name) not in inside[name.id] or (isinstance(name.ctx, ast.Store) and not own)
            ):
                raise Refused(f"the loop variable {name.id} is read behind its loop, or is another variable as well")

    def _resolve(self, node: ast.expr) -> Any:
        """What a global name or its attribute stands for: the path of something in torch, or the object.

        None for what is computed.
        """
        path: list[str] = []
        whole: list[ast.expr] = [node]
        while isinstance(node, ast.Attribute):
            path.insert(0, node.attr)
            node = node.value
            whole.append(node)
        if not isinstance(node, ast.Name) or node.id in self._local or node.id in self._unread:
            return None
        value = self._globals[node.id] if node.id in self._globals else getattr(builtins, node.id, None)
        text, at = node.id, 0
        while at < len(path) and id(value) in _MODULES:
            text, value = f"{_MODULES[id(value)]}.{path[at]}", getattr(value, path[at], None)
            at += 1
        if at < len(path) or value is None or isinstance(value, types.ModuleType):
            raise Refused(f"it uses the global {ast.unparse(whole[0])}")
        self._resolved.update(map(id, whole))
        return text if at and callable(value) else value


def _is_range(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"
