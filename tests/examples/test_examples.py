"""Each example runs, with a tiny model where it takes one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs
from tests.helpers.torchrun import ROOT, environment, torchrun

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def fresh(graphs_as_they_are, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    clear_reports()


def run(name: str, *arguments: str):
    """What the ``main`` of an example returns."""
    module = importlib.import_module(name)
    try:
        return module.main(list(arguments))
    finally:
        sys.modules.pop(name)


def rewritten() -> list[tuple[str, int]]:
    return [(report.kind, report.rewritten) for report in compiled_graphs()]


def test_all_examples_are_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"demo", "smollm2"}  # `tests/models/test_demo_model.py`
    assert names == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "all_examples_are_tested"
    }


def test_generate(tiny_model, capsys):
    text = run("generate", "--model", str(tiny_model), "--prompt", "hello world", "--tokens", "8")
    assert len(text) > len("hello world")
    assert "InnerQTensor" in capsys.readouterr().out and rewritten() == [("prefill", 2), ("decode", 2)]


def test_custom_decoder():
    cache = run("custom_decoder", "--tokens", "6", "--context", "140")
    assert all(isinstance(keys, InnerQTensor) and keys.shape[2] == 145 for keys, _ in cache)
    assert rewritten() == [("prefill", 2), ("decode", 2)]


@pytest.mark.slow
def test_long_context(tiny_model, tmp_path):
    chart = []
    if importlib.util.find_spec("matplotlib") is not None:
        chart = ["--plot", str(tmp_path / "chart.png")]
    rows = run("long_context", "--model", str(tiny_model), "--context", "200", "600", "--steps", "2", *chart)
    assert [row["context"] for row in rows] == [200, 600]
    assert rows[1]["plain"][1] == 2 * 2 * 2 * 64 * 606 * 2  # layers, sides, heads, head_dim, tokens, bytes
    growth = [rows[1][side][1] - rows[0][side][1] for side in ("innerq", "plain")]
    assert growth[0] < 0.3 * growth[1]
    assert not chart or (tmp_path / "chart.png").stat().st_size > 5000


def test_chat_prefix_reuse(tiny_model, tmp_path):
    (tmp_path / "document.txt").write_text("the quick brown fox jumps over the lazy dog. " * 5)
    arguments = ("--model", str(tiny_model), "--document", str(tmp_path / "document.txt"), "--tokens", "4")
    answers = run("chat_prefix_reuse", *arguments)
    assert len(answers) == 3
    assert ("decode", 2) in rewritten()


def test_debug_graphs(tmp_path, capsys):
    differences = run("debug_graphs", "--out", str(tmp_path / "graphs"))
    out = capsys.readouterr().out
    assert "1 of 2 attentions" in out and "not rewritten" in out
    assert (tmp_path / "graphs" / "index.html").exists()
    assert differences["nothing quantized"] < 1e-5 < 1e-3 < differences["as it is"]
    assert differences["no rewrite"] == pytest.approx(differences["as it is"], rel=0.05)


def test_static_cache():
    outputs = run("static_cache", "--max-tokens", "512", "--prompt", "300", "--steps", "4")
    plain = outputs.pop("plain")
    for title, out in outputs.items():
        error = (out - plain).square().mean().sqrt() / plain.square().mean().sqrt()
        assert 1e-4 < error < 0.3, title  # quantized, and near
    # a step on dense buffers, prompt and step on quantized ones
    assert [kind for kind, count in rewritten() if count] == ["decode"] * 3


@pytest.mark.slow  # tests/parallel has ranks, too
def test_tensor_parallel(tiny_model):
    arguments = ("--model", str(tiny_model), "--prompt", "hello world", "--tokens", "6")
    script = ("-m", "tests.helpers.without_inductor", str(EXAMPLES / "tensor_parallel.py"))
    command = torchrun(2, *script, *arguments)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    sizes = [line.split(": ")[1] for line in lines if line.startswith("rank ")]
    assert len(sizes) == 2 and sizes[0] == sizes[1] and sizes[0].startswith("1 KV heads, ")
