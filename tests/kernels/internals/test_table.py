"""The table of undocumented API: complete, true of this torch, and no file but those of ``internals`` uses such API."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from innerq_compile.kernels.internals.table import TOPICS, missing
from innerq_compile.kernels.internals.table.entry import Internal
from innerq_compile.kernels.versions import SUPPORTED_TORCH, release
from tests.helpers.undocumented_api import uses

ROOT = Path(__file__).resolve().parents[3]
INTERNALS = ROOT / "kernels" / "internals"
ENTRIES = [(topic, entry) for topic, entries in TOPICS.items() for entry in entries]


def bare(name: str) -> str:
    """A name of the table without its parameters."""
    return name.split("(")[0]


def private_attributes() -> set[str]:
    """The private attributes in the table, by their last part: no other file may use one, on any object."""
    names = [bare(name).split(".")[-1] for _, entry in ENTRIES for name in entry.names]
    return {name for name in names if re.match(r"_(?!_)", name)}


@pytest.mark.parametrize("topic", TOPICS)
def test_modules_use_nothing_that_is_not_in_the_table(topic):
    listed = {f"{entry.module}.{bare(name)}" for entry in TOPICS[topic] for name in entry.names}
    lines = {}
    for line, name in uses(INTERNALS / f"{topic}.py", private_attributes()):
        known = any(entry == name or entry.startswith(f"{name}.") for entry in listed)
        if not known and name not in {word for entry in listed for word in entry.split(".")}:
            lines[line] = name
    assert lines == {}


@pytest.mark.parametrize("topic", TOPICS)
def test_the_table_holds_nothing_that_is_not_used(topic):
    """Names are used in the topic's module, or by the lowerings of the objects that they get from it."""
    files = [INTERNALS / f"{topic}.py", *(ROOT / "kernels" / "lowering").glob("*.py")]
    words = set(re.findall(r"\w+", "".join(file.read_text() for file in files)))
    names = [bare(name).removesuffix(".__init__") for entry in TOPICS[topic] for name in entry.names]
    assert [name for name in names if name.split(".")[-1] not in words] == []


def test_no_other_file_uses_such_api():
    """An undocumented name of torch or Triton is used only through ``kernels/internals``."""
    found = {}
    for folder in ("innerq_compile", "passes", "kernels"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if INTERNALS not in file.parents:
                found |= {f"{file.relative_to(ROOT)}:{line}": name for line, name in uses(file, private_attributes())}
    assert found == {}


def test_a_module_of_each_topic():
    assert {path.stem for path in INTERNALS.glob("*.py")} - {"__init__"} == set(TOPICS)
    assert {path.stem for path in (INTERNALS / "table").glob("*.py")} - {"__init__", "entry"} == set(TOPICS)


@pytest.mark.parametrize(("topic", "entry"), ENTRIES, ids=[f"{topic}-{entry.names[0]}" for topic, entry in ENTRIES])
def test_entries_say_why(topic, entry):
    assert entry.names and entry.why.endswith(".") and entry.without.endswith(".")
    assert set(entry.versions) <= set(SUPPORTED_TORCH) and entry.versions


def test_this_torch_has_all():
    assert missing() == {}


def test_what_other_versions_have_is_not_missing():
    running = "{}.{}".format(*release(torch.__version__))
    others = tuple(version for version in SUPPORTED_TORCH if version != running)
    assert Internal("torch._nowhere", ("a",), "", "", versions=others).missing() == []
    assert Internal("torch._nowhere", ("a",), "", "", versions=(running,)).missing() == ["torch._nowhere.a"]


@pytest.mark.parametrize(
    ("entry", "lacks"),
    [
        (Internal("torch._nowhere", ("a", "b"), "", ""), ["torch._nowhere.a", "torch._nowhere.b"]),
        (Internal("torch.fx", ("Node.nothing", "Node.users"), "", ""), ["torch.fx.Node.nothing"]),
        (Internal("torch.fx", ("Graph.node_copy(node, wrong)",), "", ""), ["torch.fx.Graph.node_copy(node, wrong)"]),
        (Internal("torch.fx", ("Graph.node_copy(node, arg_transform)",), "", ""), []),
        (Internal("torch.fx.node", ("_no_mark", "_prev"), "", "", on_objects=True), ["torch.fx.node: _no_mark"]),
        (Internal("torch._nowhere.at_all", ("_mark",), "", "", on_objects=True), ["torch._nowhere.at_all: _mark"]),
    ],
)
def test_what_is_missing(entry, lacks):
    assert entry.missing() == lacks


def test_what_nobody_can_use_is_not_missing(monkeypatch):
    entry = Internal("torch._C", ("_no_such_function",), "", "", needs="cuda")
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    assert entry.missing() == []
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    assert entry.missing() == ["torch._C._no_such_function"]
