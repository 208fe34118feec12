"""What is being compiled is told: one line for each graph that takes long, on stderr unless somebody listens."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time

import pytest
import torch

from innerq_compile import innerq
from innerq_compile.compiler import notices, observers
from innerq_compile.runtime.report import GraphKind, GraphReport
from tests.helpers.programs import TinyAttention
from tests.helpers.scripts import ROOT
from tests.helpers.torchrun import environment

PATIENCE = 0.2


@pytest.fixture(autouse=True)
def lines_are_on(monkeypatch):
    monkeypatch.delenv("INNERQ_PROGRESS")


class Slow:
    """An observer that makes compilations of graphs with an attention take longer than the patience of notices."""

    def after_pass(self, name, gm):
        pass

    @contextlib.contextmanager
    def compiling(self, gm, report, prelude):
        time.sleep(3 * PATIENCE if report.attentions else 0)
        yield

    def first_call(self, args):
        pass


@pytest.fixture
def slow(monkeypatch, graphs_as_they_are):
    monkeypatch.setattr(observers, "_INSTALLED", [lambda gm, config, options: Slow()])
    monkeypatch.setattr(notices, "PATIENCE", PATIENCE)


def run():
    """Compile a prompt, decode steps, and a graph without attention, which is fast."""
    model = innerq(TinyAttention())
    with torch.no_grad():
        _, cache = model(torch.randn(1, 20, 32))
        model(torch.randn(1, 1, 32), cache)
        innerq(lambda x: x + 1)(torch.ones(2))


def told(caplog) -> list[str]:
    return [record.getMessage().split(";")[0] for record in caplog.records if record.name == notices.log.name]


@pytest.mark.usefixtures("slow")
def test_a_line_for_each_graph_that_takes_long(caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    run()
    assert told(caplog) == ["compiling a prompt, 1 attention layer", "compiling decode steps, 1 attention layer"]
    assert f"kept in {tmp_path} for the next process" in caplog.text


@pytest.mark.usefixtures("graphs_as_they_are")
def test_nothing_is_said_of_fast_ones_and_no_timer_is_left(caplog, monkeypatch):
    monkeypatch.setattr(notices, "PATIENCE", 60)
    run()
    assert told(caplog) == []
    assert not [thread for thread in notices.threading.enumerate() if isinstance(thread, notices.threading.Timer)]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("how", ["variable", "level", "rank"])
def test_it_can_be_turned_off(caplog, monkeypatch, how):
    if how == "level":
        monkeypatch.setattr(notices.log, "level", logging.WARNING)
        notices.log.manager._clear_cache()
    else:
        monkeypatch.setenv(*{"variable": ("INNERQ_PROGRESS", "0"), "rank": ("LOCAL_RANK", "1")}[how])
    run()
    assert told(caplog) == []
    monkeypatch.undo()
    notices.log.manager._clear_cache()


@pytest.mark.usefixtures("slow")
def test_listeners_get_the_text_at_once_and_no_line_is_written(caplog):
    heard = []
    with notices.LISTENERS.holding(heard.append):
        run()
    assert heard == [
        "a prompt, 1 attention layer",
        "decode steps, 1 attention layer",
        "a graph without a quantized cache",
    ]
    assert told(caplog) == []


def test_the_line_names_regions_once_they_are_known():
    report = GraphReport(GraphKind.DECODE, attentions=2, rewritten=2, reasons=())
    assert notices.description(report) == "decode steps, 2 attention layers"
    report.regions = "4 regions of 3 kinds"
    assert notices.description(report) == "decode steps, 2 attention layers (4 regions of 3 kinds)"


def test_a_failed_compilation_is_not_told_of_later(monkeypatch, caplog):
    monkeypatch.setattr(notices, "PATIENCE", PATIENCE)
    with pytest.raises(ValueError, match="no"), notices.compiling():
        raise ValueError("no")
    time.sleep(2 * PATIENCE)
    assert told(caplog) == []


PROGRAM = """
import {first}
import time, torch
from innerq_compile.compiler import notices
from innerq_compile.runtime.report import GraphKind, GraphReport
{setup}
notices.PATIENCE = 0.1
with notices.compiling() as notice:
    notice.concerns(GraphReport(GraphKind.PREFILL, attentions=2, rewritten=2, reasons=()))
    time.sleep(1)
"""


AS_IT_IS = ("", "innerq_compile: compiling a prompt, 2 attention layers; ")
CONFIGURED = (
    "import logging; logging.basicConfig(level=logging.INFO)",
    "INFO:innerq_compile.compiling:compiling a prompt",
)


@pytest.mark.parametrize(
    ("first", "setup", "start"),
    [  # a process for each: by default each import and each setup runs once
        pytest.param("torch", *AS_IT_IS, id="torch-as it is"),
        pytest.param("innerq_compile", *CONFIGURED, id="innerq_compile-configured"),
        pytest.param("torch", *CONFIGURED, id="torch-configured", marks=pytest.mark.slow),
        pytest.param("innerq_compile", *AS_IT_IS, id="innerq_compile-as it is", marks=pytest.mark.slow),
    ],
)
def test_a_plain_program_shows_the_line_once(first, setup, start):
    command = [sys.executable, "-c", PROGRAM.format(first=first, setup=setup)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr.startswith(start) and done.stderr.count("compiling a prompt") == 1, done.stderr
