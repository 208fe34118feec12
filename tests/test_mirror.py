"""The tree of tests mirrors the source, and helpers are in one folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
#: Folders of tests that mirror a folder of the source.
MIRRORED = {
    **{
        room: f"innerq_compile/{room}"
        for room in ("ahead", "cache", "cli", "compiler", "inspect", "integrations", "runtime")
    },
    "kernels": "kernels",
    "passes": "passes",
}
FILES = sorted(TESTS.rglob("*.py"))


def mirror_of(test: Path) -> Path | None:
    """The file or folder of the source that a test file is named after. More words may follow.

    ``tests/cache/test_storage_memory.py`` tests ``innerq_compile/cache/storage.py``.
    """
    room, *folders = test.relative_to(TESTS).parent.parts
    source = ROOT.joinpath(MIRRORED[room], *folders)
    words = test.stem.removeprefix("test_").split("_")
    for count in range(len(words), 0, -1):
        name = "_".join(words[:count])
        for found in (source / f"{name}.py", source / name / "__init__.py"):
            if found.is_file():
                return found
    return None


def names_of_imports(file: Path) -> list[str]:
    """The modules that a file imports from, as it writes them."""
    tree = ast.parse(file.read_text())
    return [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("room", MIRRORED)
def test_files_have_a_source(room):
    tests = sorted((TESTS / room).rglob("test_*.py"))
    assert tests
    assert [str(test.relative_to(ROOT)) for test in tests if mirror_of(test) is None] == []


def test_a_mirror_is_found_by_its_longest_name():
    assert mirror_of(TESTS / "cache/test_storage_memory.py") == ROOT / "innerq_compile/cache/storage.py"
    assert mirror_of(TESTS / "passes/test_match_attention.py") == ROOT / "passes/match_attention.py"
    assert mirror_of(TESTS / "passes/test_pipeline_graphs.py") == ROOT / "passes/pipeline/__init__.py"
    assert mirror_of(TESTS / "passes/graph/test_nothing_of_the_kind.py") is None


def test_helpers_stand_in_one_place():
    elsewhere = [file for file in FILES if file.parent.name != "helpers"]
    others = [file for file in elsewhere if not file.name.startswith("test_")]
    assert {file.name for file in others} <= {"__init__.py", "conftest.py"}, others
    assert not list((TESTS / "helpers").glob("test_*"))


def test_no_test_file_imports_another():
    """What several test files need is a helper."""
    found = {
        str(file.relative_to(ROOT)): name
        for file in FILES
        for name in names_of_imports(file)
        if name.rpartition(".")[2].startswith("test_")
    }
    assert found == {}
