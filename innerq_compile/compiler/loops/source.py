"""The statements of a function as a function of its own, which can be tried.

def f(x, state):                                  def tried(range_, read_, write_, end_, x, state):
    out = torch.zeros_like(x)                         out = torch.zeros_like(x)
    for i in range(x.shape[1]):            ->         for i in range_(x.shape[1]):
        state = state * x[:, i]                           state = state * read_(x)[:, i]
        out[:, i] = state                                 write_(out)[:, i] = state
    return out, state                                     end_(state)
                                                      return out, state
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any

from ...kernels.internals.dynamo_loops import Refused
from .allowed import check, elements, is_loop, parameters
from .finding import Place, definition_of

#: Names of the arguments that stand for ``range(...)``, and are told of what is read, written, and carried on.
RANGE, READ, WRITE, END = "__innerq_range", "__innerq_read", "__innerq_write", "__innerq_end"


@dataclasses.dataclass(frozen=True)
class Source:
    """The statements of a function.

    Attributes:
        statements: those of the function.
        params: the names of its arguments, without those that it never reads.
        text: what identifies the statements, and those of the functions that they call.
    """

    statements: tuple[ast.stmt, ...]
    params: tuple[str, ...]
    text: str


def source_of(place: Place, names: dict[str, Any], running: types.CodeType | None = None) -> Source:
    """The source of a function with a loop.

    Args:
        place: where it is.
        names: its global variables.
        running: the code of the function, which the file has to have.

    Raises:
        Refused: if it is not found, or it may do more than return what it computes from its arguments.
    """
    function = definition_of(place, names, running)
    others = check(function, names)
    text = "\n".join([*map(ast.dump, function.body), *(ast.dump(other) for other in others)])
    made = _Watched().visit(copy.deepcopy(function))
    assert isinstance(made, ast.FunctionDef)
    return Source(tuple(made.body), tuple(parameters(function)), text)


def function_of(source: Source, names: dict[str, Any], file: str) -> Callable[..., Any]:
    """The statements as a function with the global variables ``names``.

    Its arguments are those that stand for ``range`` and so on, and those of the function.
    """
    arguments = [ast.arg(name) for name in (RANGE, READ, WRITE, END, *source.params)]
    function = ast.FunctionDef(
        "loop", ast.arguments([], arguments, None, [], [], None, []), list(source.statements), [], None, None
    )
    if "type_params" in ast.FunctionDef._fields:
        setattr(function, "type_params", [])  # noqa: B010  (Python 3.12)
    module = ast.Module([ast.copy_location(function, source.statements[0])], [])
    ast.fix_missing_locations(module)
    made: dict[str, Any] = {}
    try:
        exec(compile(copy.deepcopy(module), file, "exec", dont_inherit=True), names, made)
    except SyntaxError as error:
        raise Refused(f"its source is no function of its own: {error}") from None
    return made["loop"]


class _Watched(ast.NodeTransformer):
    """Puts the calls that watch a function into its statements."""

    def __init__(self) -> None:
        self._index: list[str] = []

    def visit_For(self, node: ast.For) -> ast.AST:
        if not is_loop(node):
            return self.generic_visit(node)
        assert isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Call)
        stored = {
            name.id
            for statement in node.body
            for name in ast.walk(statement)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        self._index.append(node.target.id)
        self.generic_visit(node)
        self._index.pop()
        node.iter.func = _name(RANGE)
        node.body.append(ast.Expr(_call(END, [_name(name) for name in sorted(stored)])))
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        by_index = any(name.id in self._index for name in elements(node))
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Store):
            node.value = _call(WRITE, [node.value])
        elif by_index:
            node.value = _call(READ, [node.value])
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name):
            return node
        return [ast.Expr(_call(WRITE, [_name(node.target.id), ast.Constant(False)])), node]


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _call(name: str, args: list[Any]) -> ast.Call:
    return ast.Call(_name(name), args, [])
