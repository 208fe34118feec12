"""Logs: one line for each graph, one warning, TORCH_LOGS, the artifact, traces for tlparse."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from innerq_compile import clear_reports, innerq
from tests.helpers.programs import TinyAttention

#: Compiles a prefill graph, a decode graph and a graph without attention; Inductor stays out.
PROGRAM = """
import sys
import torch
sys.path.insert(0, {root!r})
{setup}
from tests.helpers.programs import TinyAttention
from tests.helpers.without_inductor import without_inductor
model = torch.compile(TinyAttention(), backend="innerq")
with without_inductor(), torch.no_grad():
    _, cache = model(torch.randn(1, 20, 32))
    model(torch.randn(1, 1, 32), cache)
"""
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(setup: str = "", **environment: str) -> str:
    """What the program writes to stderr."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH_", "INNERQ_"))}
    program = PROGRAM.format(root=ROOT, setup=setup)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**kept, **environment}, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_one_line_a_graph_and_one_warning(caplog, no_inductor):
    caplog.set_level(logging.INFO, logger="innerq_compile")
    clear_reports()

    def levels():
        return [record.levelname for record in caplog.records if record.name == "innerq_compile.compiler.reports"]

    plain = [torch.compile(lambda x, i=i: x + i, backend="innerq") for i in range(2)]
    for function in plain:
        function(torch.ones(3))
    assert levels() == ["INFO", "WARNING", "INFO"]  # the same reason is given once
    assert "nothing was rewritten in graph 0 (base): no attention was found in the graph" in caplog.text
    caplog.clear()
    model = innerq(TinyAttention(), preset="small")
    with torch.no_grad():
        _, cache = model(torch.randn(1, 20, 32))
        model(torch.randn(1, 1, 32), cache)
    messages = [record.getMessage() for record in caplog.records if record.name == "innerq_compile.compiler.reports"]
    assert messages == [
        "graph 2: 1/1 attentions rewritten, prefill, small",
        "graph 3: 1/1 attentions rewritten, decode, small",
    ]


@pytest.mark.parametrize("setting", ["+innerq_compile", pytest.param("innerq_compile", marks=pytest.mark.slow)])
def test_torch_logs_takes_the_name_of_the_package_and_traces_hold_artifacts(setting, tmp_path):
    text = run(TORCH_LOGS=setting, TORCH_TRACE=str(tmp_path))
    assert "graph 0: 1/1 attentions rewritten, prefill, base" in text
    assert "graph 1: 1/1 attentions rewritten, decode, base" in text
    assert "__innerq_graphs" not in text
    trace = "".join(path.read_text() for path in tmp_path.iterdir())
    for name in ("innerq_report", "innerq_graph_0", "innerq_graph_1"):
        assert f'"name": "{name}"' in trace
    assert "torch.ops.innerq.decode_attention" in trace


SET_LOGS = "import innerq_compile; torch._logging.set_logs(modules={'innerq_graphs': True})"


@pytest.mark.parametrize(
    ("setup", "settings"),
    [
        pytest.param("", {"TORCH_LOGS": "innerq_compile,innerq_graphs"}, id="environment"),
        pytest.param(SET_LOGS, {}, id="call", marks=pytest.mark.slow),
    ],
)
def test_the_artifact_is_switched_on_by_either_way(setup, settings):
    text = run(setup, **settings)
    assert "[__innerq_graphs]" in text and "captured:" in text and "rewrite_decode:" in text
    assert "+ " in text and "torch.ops.innerq.decode_attention" in text
