"""The source of a function: the one in its file, if that is the code that runs."""

from __future__ import annotations

import ast
import dataclasses
import functools
import linecache
import types
from typing import Any

from ...kernels.internals.dynamo_loops import Refused


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a function is: the file, its name and its first line."""

    file: str
    function: str
    first: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.first})"


def place_of(code: types.CodeType) -> Place:
    return Place(code.co_filename, code.co_name, code.co_firstlineno)


def definition_of(place: Place, names: dict[str, Any], running: types.CodeType | None = None) -> ast.FunctionDef:
    """The definition of a function in its file.

    Args:
        place: where it is.
        names: its global variables.
        running: the code of the function, which the file has to have.

    Raises:
        Refused: if it is not found.
    """
    text = "".join(linecache.getlines(place.file, names))
    try:
        tree, codes = _parsed(text, place.file)
    except (SyntaxError, ValueError):
        raise Refused("its source is not found") from None
    found = [code for code in codes if place_of(code) == place]
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name == place.function
        and min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) == place.first
    ]
    if len(found) != 1 or len(functions) != 1 or (running is not None and not same_code(found[0], running)):
        raise Refused("its source is not found")
    if found[0].co_freevars:
        raise Refused("it is a function in a function")
    return functions[0]


def same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """Whether two codes do the same: their instructions, and what these refer to by number."""
    if any(getattr(one, name) != getattr(other, name) for name in ("co_code", "co_names", "co_varnames")):
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    return all(map(_same_constant, one.co_consts, other.co_consts))


def _same_constant(one: Any, other: Any) -> bool:
    if isinstance(one, types.CodeType) and isinstance(other, types.CodeType):
        return same_code(one, other)
    return type(one) is type(other) and repr(one) == repr(other)  # 1 is no True, and 0.0 no -0.0


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
