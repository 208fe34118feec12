"""Threads that wait for one another's compilations, and those that run beside one."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from innerq_compile import compiled_graphs, innerq
from innerq_compile.kernels.internals import dynamo_calls, dynamo_threads
from innerq_compile.kernels.internals.dynamo_limits import graphs_at_most
from tests.helpers.threads import at_once
from tests.helpers.without_inductor import as_it_is, without_inductor

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")
THREADS = 8


def step(x):
    return x * 2 + 1


def test_threads_that_arrive_together_share_a_graph():
    """Also where there are more of them than Dynamo compiles graphs for a function."""
    compiled = innerq(step)
    xs = [torch.randn(3) for _ in range(THREADS)]
    for _ in range(2):
        found = at_once(*[lambda x=x: compiled(x) for x in xs])
        assert all(torch.equal(one, step(x)) for one, x in zip(found, xs, strict=True))
    assert [report.calls for report in compiled_graphs()] == [2 * THREADS]


def test_what_threads_have_used_is_no_graph_of_its_own():
    """Uses of a graph that another thread has compiled do not count for the limit."""
    compiled, limit = torch.compile(step, backend="innerq", dynamic=False), graphs_at_most("recompile_limit")
    for size in range(2, limit + 2):
        xs = [torch.randn(size) for _ in range(3)]
        found = at_once(*[lambda x=x: compiled(x) for x in xs])
        assert all(torch.equal(one, step(x)) for one, x in zip(found, xs, strict=True))
    assert [report.calls for report in compiled_graphs()] == [3] * limit
    compiled(torch.randn(limit + 2))
    assert len(compiled_graphs()) == limit, "the limit is what it was"


def test_what_was_compiled_for_another_call_is_not_used():
    """Threads that wait for one another, and of which each needs a graph of its own, or has another backend."""
    compiled = [innerq(step, dynamic=False), torch.compile(step, backend="eager", dynamic=False)]
    calls = [(one, torch.randn(size)) for one in compiled for size in (3, 4, 5)]
    found = at_once(*[lambda one=one, x=x: one(x) for one, x in calls])
    assert all(torch.equal(one, step(x)) for one, (_, x) in zip(found, calls, strict=True))
    assert sorted(report.calls for report in compiled_graphs()) == [1, 1, 1]


def test_gradients_are_asked_for_by_some():
    def grown(x, gradients):
        with torch.set_grad_enabled(gradients):
            return compiled(x)

    compiled, x = innerq(step), torch.randn(3, requires_grad=True)
    found = at_once(*[lambda on=on: grown(x, on) for on in (True, False) * 4])
    assert [one.requires_grad for one in found] == [True, False] * 4


def test_calls_beside_a_trace():
    """Until torch 2.13 they raise an error."""
    compiled, x, seen = innerq(step), torch.randn(3), []
    expected = compiled(x)

    def beside():
        try:
            seen.append(compiled(x))
        except BaseException as error:
            seen.append(error)

    def traced(x):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        return x + 1

    def run(gm, example_inputs):
        make_fx(traced)(torch.ones(3))  # as AOTAutograd and Inductor do
        return as_it_is(gm, example_inputs)

    with without_inductor(run):
        innerq(lambda x: x - 1)(x)
    assert torch.equal(seen[0], expected)
    assert not dynamo_threads._TRACING


def test_a_call_by_a_trace_is_still_an_error():
    compiled = innerq(step)
    with pytest.raises(RuntimeError, match="symbolically trace"):
        symbolic_trace(lambda x: compiled(x))
    with dynamo_threads.tracing(), pytest.raises(RuntimeError, match="symbolically trace"):
        symbolic_trace(lambda x: compiled(x))


def test_counters_know_of_one_graph():
    dynamo_calls.counters.clear()
    compiled = innerq(step)
    at_once(*[lambda: compiled(torch.ones(3)) for _ in range(THREADS)])
    assert dynamo_calls.counters["stats"]["unique_graphs"] == 1


def test_few_notes_of_uses_are_kept(monkeypatch):
    """Behind so many, threads compile what others have compiled: Dynamo walks all notes at a call."""
    monkeypatch.setattr(dynamo_threads, "MOST_NOTES", THREADS)
    compiled = torch.compile(step, backend="innerq", dynamic=False)
    for size in range(2, 8):
        xs = [torch.randn(size) for _ in range(THREADS)]
        found = at_once(*[lambda x=x: compiled(x) for x in xs])
        assert all(torch.equal(one, step(x)) for one, x in zip(found, xs, strict=True))
    entries = dynamo_threads._debug_get_cache_entry_list(step.__code__)
    notes = [one for one in entries if isinstance(one.guard_manager, dynamo_threads.DeletedGuardManagerWrapper)]
    assert 0 < len(notes) <= THREADS
