"""Reports of graphs where threads compile and run at the same time."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from innerq_compile import clear_reports, compiled_graphs
from innerq_compile.compiler.reports import record
from innerq_compile.passes.context import Reason
from innerq_compile.runtime.report import (
    RUN_OBSERVERS,
    AttentionKernel,
    CudaGraphs,
    CudaGraphUse,
    GraphKind,
    GraphReport,
    KeyNormOrigin,
    KeyNormReport,
    ServedBy,
)

THREADS, TURNS = 8, 100


@pytest.fixture(autouse=True)
def clean():
    """No reports, and threads that take turns as often as they can."""
    clear_reports()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    clear_reports()


def at_once(work) -> None:
    """Call ``work(number)`` in several threads at the same time."""
    barrier = threading.Barrier(THREADS, timeout=60)
    failures = []

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def plain() -> GraphReport:
    return GraphReport(GraphKind.PLAIN, 0, 0, (Reason("no attention was found in the graph"),))


def test_every_graph_has_a_number_of_its_own_and_a_reason_is_warned_of_once(caplog):
    caplog.set_level(logging.WARNING, logger="innerq_compile")
    at_once(lambda number: [record(plain()) for _ in range(TURNS)])
    assert [report.index for report in compiled_graphs()] == list(range(THREADS * TURNS))
    assert len(caplog.records) == 1


def test_all_calls_are_counted():
    report = plain()
    at_once(lambda number: [(report.has_run([]), report.has_recorded()) for _ in range(TURNS)])
    assert report.calls == report.recorded == THREADS * TURNS


def test_observers_of_threads_see_their_own_calls():
    reports, seen = [plain() for _ in range(THREADS)], [[] for _ in range(THREADS)]

    def work(number: int) -> None:
        for _ in range(TURNS):
            with RUN_OBSERVERS.holding(lambda report, storages: seen[number].append(report)):
                reports[number].has_run([])

    at_once(work)
    assert seen == [[report] * TURNS for report in reports]


def test_in_words():
    kernel = AttentionKernel(ServedBy.REFERENCE, "no C++ compiler")
    assert (kernel.short, str(kernel)) == ("reference", "reference: no C++ compiler")
    assert str(AttentionKernel(ServedBy.TRITON_FIELDS)) == "Triton, on packed fields"
    assert str(AttentionKernel(ServedBy.PROGRAM_EXACT)) == "the program's own attention, on exact keys and values"
    norm = KeyNormReport("projection", "after rotary (no linear layer)")
    assert str(norm) == "query: projection, new key: after rotary (no linear layer)"
    assert norm.short == "query: projection"
    assert KeyNormReport(query="after rotary (channels are mixed)").short == "query: after rotary"
    assert str(KeyNormReport(origin=KeyNormOrigin.FROM_PROMPT)) == "computed from the prompt"
    uses = [CudaGraphs(use, "why") for use in CudaGraphUse]
    assert [str(use) for use in uses] == ["switched off: why", "yes; why", "no: why", "no: Inductor skipped them: why"]
    assert [use.short for use in uses] == ["switched off", "yes", "no", "no"]
    assert str(CudaGraphs()) == "no"


def test_as_json_takes_it():
    shown = plain().to_dict()
    assert type(shown["kind"]) is str and shown["kind"] == "plain" and shown["cuda_graphs"] == "no"
    assert shown["reasons"] == [{"text": "no attention was found in the graph", "where": "", "layer": ""}]
