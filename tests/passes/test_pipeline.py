"""The list of passes: one file a pass, and what all of them keep to."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from innerq_compile import InnerQConfig, passes
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.graph.values import has_example
from tests.helpers.programs import BufferAttention, LateTransposing, TinyAttention, capture

FOLDER = Path(passes.__file__).parent
FILES = {path.stem: ast.parse(path.read_text()) for path in FOLDER.glob("*.py") if path.stem != "__init__"}


def test_one_file_a_pass_and_nothing_else():
    assert sorted(FILES) == sorted(PIPELINE.names())


@pytest.mark.parametrize("name", PIPELINE.names())
def test_a_pass_has_a_test_file(name):
    assert Path(__file__).with_name(f"test_{name}.py").exists()


@pytest.mark.parametrize("name", PIPELINE.names())
def test_a_pass_file(name):
    tree = FILES[name]
    assert "->" in (ast.get_docstring(tree) or ""), "it opens with what it turns into what"
    public = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert public == [name], "what several passes use stands in a folder"
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert not imported & {*PIPELINE.names()}, "passes do not import one another"
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not read & {"args", "kwargs", "meta"}, "nodes are read and written in graph/"


class OwnMask(TinyAttention):
    """Makes the mask of a step of the length of the cache, so that a prelude makes it where steps are recorded."""

    def forward(self, x, past=None, mask=None):
        if past is not None:
            mask = torch.arange(past[0].shape[2] + 1)[None] >= 0
        return super().forward(x, past, mask)


def growing(model):
    def step(last):
        return torch.randn(1, 1, 32), last[1]

    def prompt(_):
        return torch.randn(1, 5, 32), None, torch.ones(5, 5).tril().bool()

    return capture(model, prompt, step, step, config=InnerQConfig.preset("base"))


def over_buffers(model):
    buffers = [torch.zeros(1, 1, 64, 16) for _ in range(2)]
    return capture(
        model,
        *(
            lambda _, at=at: (torch.randn(1, 1, 32), torch.tensor([at]), *buffers, (torch.arange(64) <= at)[None])
            for at in (7, 8)
        ),
        config=InnerQConfig.preset("base"),
    )


@pytest.mark.parametrize(
    ("captured", "model"),
    [(growing, OwnMask()), (growing, LateTransposing()), (over_buffers, BufferAttention())],
    ids=["prelude", "late", "buffers"],
)
def test_every_node_has_an_example(captured, model):
    """AOTAutograd keeps a graph in its cache on disk only where it knows the values that methods are called on."""
    torch.manual_seed(0)
    preludes = 0
    for gm, _ in captured(model):
        for static_lengths in (False, True):
            result = PIPELINE.rewrite(gm, InnerQConfig.preset("base"), static_lengths=static_lengths)
            assert result.context.rewritten
            graphs = [result.gm.graph]
            if result.context.prelude is not None:
                graphs.append(result.context.prelude.graph.graph)
                preludes += 1
            for graph in graphs:
                assert [node for node in graph.nodes if node.op != "output" and not has_example(node)] == []
    assert (preludes > 0) == isinstance(model, OwnMask)
