"""docs/troubleshooting.md quotes messages that the code has, and has an entry for each warning."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.helpers import support_matrix
from tests.helpers.families import EACH_STEP

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
#: What stands for a value in a text with values.
GAP = "\0"


@functools.cache
def sources() -> list[ast.Module]:
    folders = ("innerq_compile", "passes", "kernels")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths if not path.is_symlink()]


def text_of(node: ast.AST) -> str:
    """A string of the source, with a gap for each value that is filled in."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[sd]", GAP, node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    return ""


@functools.cache
def texts() -> str:
    return "\n".join(text_of(node) for module in sources() for node in ast.walk(module))


def quoted() -> list[str]:
    """The messages in the first column of the tables."""
    cells = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("message", quoted())
def test_messages_are_those_of_the_code(message):
    for piece in message.split("..."):
        found = piece.strip() in texts()
        assert found, piece


def test_each_reason_on_the_support_matrix_has_an_entry():
    _, found = support_matrix.read(support_matrix.FOUND)
    reasons = {reason for row in found for reason in support_matrix.shown_reasons(row)}
    entries = [*(message.replace("...", "") for message in quoted()), EACH_STEP]
    assert reasons and [reason for reason in sorted(reasons) if not any(entry in reason for entry in entries)] == []
    assert f'"{EACH_STEP}"' in PAGE


def test_each_warning_has_an_entry():
    """Of the text of each warning, a part between values is quoted."""
    pieces = [piece.strip() for message in quoted() for piece in message.split("...")]
    for module in sources():
        for node in ast.walk(module):
            warns = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warning"
            if warns and (text := text_of(node.args[0])):
                assert any(piece in text for piece in pieces), text
