"""Finds where a file names undocumented API of torch and Triton."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

#: Modules without an underscore that torch and Triton do not document either.
UNDOCUMENTED = ("torch.fx.experimental", "triton.runtime", "triton.compiler", "triton.backends")
#: Documented all the same: ``Tensor._version`` in the notes on autograd, and operators by their names.
DOCUMENTED = {"_version", "_index_put_impl_", "_to_copy"}


def private(dotted: str) -> bool:
    """Whether a name of torch's or Triton's is undocumented."""
    parts = dotted.split(".")
    if parts[0] not in ("torch", "triton") or parts[-1] in DOCUMENTED:
        return False
    return dotted.startswith(UNDOCUMENTED) or any(re.match(r"_(?!_)", part) for part in parts)


def uses(file: Path, attributes: set[str]) -> Iterator[tuple[int, str]]:
    """Lines of a file and the API that they name: imports, ``torch._a.b``, and ``attributes`` of any object."""
    inner: set[ast.AST] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if private(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names if private(name))
        elif isinstance(node, ast.Attribute) and node not in inner:
            dotted = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", dotted) and private(dotted):
                inner.update(ast.walk(node))
                yield node.lineno, dotted
            elif node.attr in attributes:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in attributes:
            yield node.lineno, node.value
