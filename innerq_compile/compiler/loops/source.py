"""The source of a loop, or of a function with a loop, as a function of its own.

    def f(x, state):                                  def loop(range_, stack_, x, state):
        outs = []                                         for i in range_():
        for i in range(x.shape[1]):            ->             state = state * x[:, i]
            state = state * x[:, i]                           outs.append(state)
            outs.append(state)                            out = stack_(outs, dim=1)
        out = torch.stack(outs, dim=1)                    return (out, state)
        return out, state

A statement directly behind a loop that stacks what the loop has appended belongs to it: a list whose length is a symbol
cannot leave an operator.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import linecache
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...kernels.internals.dynamo_loops import Refused

#: Names of the arguments that stand for ``range(...)`` and ``torch.stack``.
RANGE, STACK = "__innerq_range", "__innerq_stack"

_LEAVES = (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Global, ast.Nonlocal)
_BRANCHES = (ast.If, ast.IfExp, ast.While, ast.Try, ast.Match, ast.Break, ast.Continue, ast.BoolOp, ast.Assert)
_HIDES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclasses.dataclass(frozen=True)
class Source:
    """The statements of a loop.

    Attributes:
        statements: the loop, and the statement that stacks its list, if there is one; or those of the function.
        whole: whether they are those of the function.
        last: the last line of that statement, None without one.
        reads: local names that are read, and attributes of local names, such as ``self.size``.
        stores: local names that are assigned.
        lists: names of lists that nothing but these statements uses once they are filled.
        text: what identifies the statements.
    """

    statements: tuple[ast.stmt, ...]
    whole: bool
    last: int | None
    reads: frozenset[str]
    stores: frozenset[str]
    lists: frozenset[str]
    text: str


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a loop is: the file, the name of the function, its first line and the line of the loop."""

    file: str
    function: str
    first: int
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


def source_of(place: Place, names: dict[str, Any], running: types.CodeType | None = None) -> Source:
    """The source of a loop.

    Args:
        place: where it is.
        names: the global variables of its function.
        running: the code of the function, which the file has to have.

    Raises:
        Refused: if it is not found, or cannot be a function.
    """
    function, code = _function(place, names)
    if running is not None and running.co_code != code.co_code:
        raise Refused("its source is not found")
    found = [
        (body, at)
        for body in _bodies(function)
        for at, node in enumerate(body)
        if isinstance(node, ast.For) and node.iter.lineno == place.line
    ]
    if len(found) != 1:
        raise Refused("its source is not found" if not found else "several loops are on one line")
    body, at = found[0]
    loop = body[at]
    assert isinstance(loop, ast.For)
    call = loop.iter
    if not _is_range(call):
        raise Refused("it does not loop over range(...)")
    behind = body[at + 1] if at + 1 < len(body) else None
    lists = _lists(function, body[:at], loop, behind, names)
    statements: list[ast.stmt] = [copy.deepcopy(loop)]
    if lists and behind is not None:
        statements.append(copy.deepcopy(behind))
        _stack_call(statements[1]).func = ast.Name(STACK, ast.Load())
    loop = statements[0]
    assert isinstance(loop, ast.For)
    loop.iter = ast.copy_location(ast.Call(ast.Name(RANGE, ast.Load()), [], []), call)
    _check(statements)
    _check_branches(statements)
    for node in _nodes(statements):
        if isinstance(node, (*_HIDES, ast.Return)):
            raise Refused("it returns or defines a function")
    local = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    stores = {name for name, context in _names(statements) if not isinstance(context, ast.Load)}
    reads = {name for name, _ in _names(statements)} & local
    if hidden := (reads | stores) & {*code.co_cellvars, *code.co_freevars}:
        raise Refused(f"it uses {min(hidden)}, which a function in a function uses as well")
    text = "\n".join(map(ast.dump, statements))
    last = behind.end_lineno if lists and behind is not None else None
    return Source(tuple(statements), False, last, frozenset(reads), frozenset(stores), frozenset(lists), text)


def function_source_of(place: Place, names: dict[str, Any], running: types.CodeType | None = None) -> Source:
    """The source of a whole function with a loop, whose arguments are all that it works on.

    Raises:
        Refused: if it is not found, or it may do more than return what it computes from its arguments.
    """
    function, code = _function(place, names)
    if running is not None and running.co_code != code.co_code:
        raise Refused("its source is not found")
    if not isinstance(function, ast.FunctionDef) or code.co_freevars or "range" in names:
        raise Refused("it is no plain function")
    statements = copy.deepcopy(function.body)
    _check(statements)
    for node in _nodes(statements):
        if isinstance(node, ast.For) and _is_range(node.iter):
            _check_branches(node.body)
    for node in _nodes(statements):
        if _is_range(node):
            node.func = ast.copy_location(ast.Name(RANGE, ast.Load()), node.func)
    text = "\n".join(map(ast.dump, statements))
    return Source(tuple(statements), True, None, frozenset(code.co_varnames), frozenset(), frozenset(), text)


def _nodes(statements: Sequence[ast.stmt]) -> list[Any]:
    return [node for statement in statements for node in ast.walk(statement)]


def _is_range(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"


def _check(statements: Sequence[ast.stmt]) -> None:
    for node in _nodes(statements):
        if isinstance(node, _LEAVES):
            raise Refused(f"it has a statement {type(node).__name__.lower()}")
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            raise Refused(f"it assigns the attribute {ast.unparse(node)}")


def _check_branches(statements: Sequence[ast.stmt]) -> None:
    for node in _nodes(statements):
        if isinstance(node, _BRANCHES):  # an iteration may take another branch than those that are tried
            raise Refused(f"it has a branch ({type(node).__name__.lower()})")


def attributes_of(source: Source, names: Sequence[str]) -> set[str]:
    """The attributes that the statements read of local names, as they are written: ``self.config.size``."""
    found = set()
    for statement in source.statements:
        for path, _ in _paths(statement, set(names)):
            found.add(path)
    return found


def function_of(
    source: Source, names: dict[str, Any], file: str, params: Sequence[str], returns: Sequence[str]
) -> Callable[..., Any]:
    """The statements as a function with the global variables ``names``.

    Args:
        source: the statements.
        names: global variables.
        file: the file that they are from.
        params: names of its arguments, after those that stand for ``range(...)`` and ``torch.stack``; a name such as
            ``self.size`` stands for the attribute.
        returns: local names whose values it returns, as a list.
    """
    statements = [copy.deepcopy(statement) for statement in source.statements]
    paths = {path for path in params if "." in path}
    roots = {path.split(".")[0] for path in paths}
    for statement in statements:
        _Named(paths, roots).visit(statement)
    if not source.whole:
        statements.append(ast.Return(ast.List([ast.Name(name, ast.Load()) for name in returns], ast.Load())))
    arguments = ast.arguments([], [ast.arg(argument(name)) for name in (RANGE, STACK, *params)], None, [], [], None, [])
    function = ast.FunctionDef("loop", arguments, statements, [], None, None)
    if "type_params" in ast.FunctionDef._fields:
        setattr(function, "type_params", [])  # noqa: B010  (Python 3.12)
    place = source.statements[0]
    module = ast.Module([ast.copy_location(function, place)], [])
    ast.fix_missing_locations(module)
    made: dict[str, Any] = {}
    exec(compile(module, file, "exec", dont_inherit=True), names, made)
    return made["loop"]


def argument(path: str) -> str:
    """The name of the argument that stands for an attribute."""
    return path.replace(".", "__innerq_")


class _Named(ast.NodeTransformer):
    def __init__(self, paths: set[str], roots: set[str]) -> None:
        self._paths, self._roots = paths, roots

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        path = _path(node)
        if path in self._paths:
            return ast.copy_location(ast.Name(argument(path), ast.Load()), node)
        return self.generic_visit(node)


def _paths(node: ast.AST, roots: set[str]) -> Iterator[tuple[str, ast.AST]]:
    path = _path(node)
    if path is not None and path.split(".")[0] in roots:
        if "." not in path:
            raise Refused(f"it uses {path}, which is no tensor or number")
        yield path, node
        return
    for child in ast.iter_child_nodes(node):
        yield from _paths(child, roots)


def _path(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _path(node.value)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def _names(statements: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr_context]]:
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id not in (RANGE, STACK):
                yield node.id, node.ctx


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """All blocks of statements of a function, without those of functions in it."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield block
            for child in block:
                if not isinstance(child, _HIDES):
                    yield from _bodies(child)
    for handler in getattr(node, "handlers", ()):
        yield from _bodies(handler)


# --- lists that are filled by a loop ----------------------------------------------------------------------------------


def _lists(
    function: ast.AST, before: list[ast.stmt], loop: ast.For, behind: ast.stmt | None, names: dict[str, Any]
) -> set[str]:
    """The list that a loop fills and the statement behind it stacks, if nothing else uses it."""
    if behind is None or names.get("torch") is not torch or _stack_call(behind, strict=False) is None:
        return set()
    stacked = _stack_call(behind).args[0]
    assert isinstance(stacked, ast.Name)
    name = stacked.id
    inside = {id(node) for statement in (loop, behind) for node in ast.walk(statement)}
    fresh = {
        id(node.targets[0])
        for node in before
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.List)
        and not node.value.elts
        and len(node.targets) == 1
    }
    appends = {
        id(node.func.value)
        for node in ast.walk(loop)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"
    }
    if not fresh:
        return set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == name:
            allowed = id(node) in fresh if id(node) not in inside else id(node) in appends or node is stacked
            if not allowed:
                return set()
    return {name}


def _stack_call(statement: ast.stmt, strict: bool = True) -> Any:
    """The call of ``torch.stack`` that a statement assigns, None if it is another one."""
    value = statement.value if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
    if isinstance(value, ast.Call) and (strict or (_path(value.func) == "torch.stack" and len(value.args) in (1, 2))):
        assert isinstance(statement, ast.Assign)
        if isinstance(statement.targets[0], ast.Name) and isinstance(value.args[0], ast.Name):
            return value
    return None


# --- finding a function -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _parsed(text: str, file: str) -> tuple[ast.Module, list[types.CodeType]]:
    tree = ast.parse(text)
    codes: list[types.CodeType] = []
    waiting = [compile(text, file, "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop()
        codes.append(code)
        waiting.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return tree, codes


def _function(place: Place, names: dict[str, Any]) -> tuple[ast.AST, types.CodeType]:
    """The definition of a function in its file, and the code that the file has for it."""
    text = "".join(linecache.getlines(place.file, names))
    try:
        tree, codes = _parsed(text, place.file)
    except (SyntaxError, ValueError):
        raise Refused("its source is not found") from None
    found = [code for code in codes if (code.co_name, code.co_firstlineno) == (place.function, place.first)]
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name == place.function
        and min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) == place.first
    ]
    if len(found) != 1 or len(functions) != 1:
        raise Refused("its source is not found")
    return functions[0], found[0]
