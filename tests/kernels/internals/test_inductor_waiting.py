"""Another graph is compiled while Inductor waits for compilers, and each of them is as if compiled alone."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torch._guards import TracingContext
from torch._inductor import async_compile
from torch._inductor.compile_fx import compile_fx
from torch._inductor.virtualized import NullHandler, V

from innerq_compile.kernels.internals import inductor_waiting
from innerq_compile.kernels.internals.inductor_waiting import while_waiting


@pytest.fixture
def waits(monkeypatch, tmp_path):
    """Where the calls of Inductor's wait begin and end, with compilers in threads and nothing on the disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    events: list[str] = []
    original = async_compile.AsyncCompile._wait_futures

    def waiting(self, scope):
        events.append("waits")
        original(self, scope)
        events.append("done")

    monkeypatch.setattr(async_compile.AsyncCompile, "_wait_futures", waiting)
    with torch._inductor.config.patch(compile_threads=2):
        yield events


def by_inductor(function, meanwhile=None):
    """A backend of torch.compile: Inductor, with something to do meanwhile."""

    def backend(gm, inputs):
        if meanwhile is None:
            return compile_fx(gm, inputs)
        with while_waiting(lambda: meanwhile(gm, inputs)):
            return compile_fx(gm, inputs)

    return torch.compile(function, backend=backend, dynamic=False)


def numbered(number: int):
    """A function whose kernel no other test compiles."""
    return lambda x: (x * number).sin() + number


def test_another_graph_is_compiled_in_the_first_wait(waits):
    x, held = torch.rand(50), []

    def meanwhile(gm, inputs):
        waits.append("another")
        held.append(compile_fx(torch.fx.symbolic_trace(numbered(1301)), [inputs[0].new_empty(50)]))

    result = by_inductor(numbered(1201), meanwhile)(x)
    torch.testing.assert_close(result, numbered(1201)(x))
    torch.testing.assert_close(held[0](x), numbered(1301)(x))
    assert waits == ["another", "waits", "done", "waits", "done"]


def test_all_tasks_are_done_in_one_wait(waits):
    """The last one first, and then what was left by others around it."""
    x, held = torch.rand(50), {}

    def made(number):
        waits.append(str(number))
        held[number] = compile_fx(torch.fx.symbolic_trace(numbered(number)), [torch.empty(50)])

    def inner(gm, inputs):
        made(1302)

    with while_waiting(lambda: made(1303)):
        result = by_inductor(numbered(1202), inner)(x)
    torch.testing.assert_close(result, numbered(1202)(x))
    for number, compiled in held.items():
        torch.testing.assert_close(compiled(x), numbered(number)(x))
    assert waits == ["1302", "1303", *["waits", "done"] * 3] and len(held) == 2


def test_what_belongs_to_the_graph_that_waits_is_put_back(waits, monkeypatch):
    seen, apart = [], inductor_waiting._apart

    @contextlib.contextmanager
    def watched(settings):
        graph, metadata = V.graph, TracingContext.get().fw_metadata
        assert metadata is not None
        with apart(settings):
            yield
        seen.append(graph is V.graph and metadata is TracingContext.get().fw_metadata)

    def meanwhile(gm, inputs):
        TracingContext.get().fw_metadata = None
        seen.append(isinstance(V.graph, NullHandler))

    monkeypatch.setattr(inductor_waiting, "_apart", watched)
    by_inductor(numbered(1401), meanwhile)(torch.rand(50))
    assert seen == [True, True]


def test_another_graph_may_be_found_on_the_disk(waits):
    """Its strides are noted of it, not of the graph that waits."""
    made: list[torch.fx.GraphModule] = []

    def capture(gm, inputs):
        made.append(gm)
        return gm.forward

    def meanwhile(gm, inputs):
        compile_fx(copy.deepcopy(made[0]), inputs)

    x = torch.rand(50)
    with torch.no_grad(), torch._inductor.utils.fresh_cache():
        torch.compile(numbered(1701), backend=capture, dynamic=False)(x)
        for number, hits in ((1801, 0), (1802, 1)):
            counters.clear()
            torch._dynamo.reset()
            torch.testing.assert_close(by_inductor(numbered(number), meanwhile)(x), numbered(number)(x))
            assert counters["aot_autograd"]["autograd_cache_hit"] == hits


def test_under_autocast_it_is_compiled_at_the_end(waits):
    done = []

    def backend(gm, inputs):
        with while_waiting(lambda: done.append(torch.is_autocast_enabled("cpu"))):
            compiled = compile_fx(gm, inputs)
            assert not done
        return compiled

    x = torch.rand(8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.compile(lambda x: x @ x + 1901, backend=backend)(x).dtype == torch.bfloat16
    assert done == [True]


def test_what_there_was_no_time_for_is_done_at_the_end():
    done = []
    with while_waiting(lambda: done.append("task")):
        done.append("compiled")
    assert done == ["compiled", "task"]


def test_tasks_of_a_compilation_that_failed_are_dropped():
    done = []
    with pytest.raises(KeyError), while_waiting(lambda: done.append("task")):
        raise KeyError
    with while_waiting(lambda: done.append("next")):
        pass
    assert done == ["next"]


def test_tasks_are_done_one_within_the_other(waits):
    """Each graph that is compiled meanwhile has a task of its own, which is done in its wait."""
    done = []

    def meanwhile(gm, inputs):
        done.append("begins")
        made = torch.fx.symbolic_trace(numbered(1501))
        with while_waiting(lambda: done.append("innermost")):
            compile_fx(made, [inputs[0].new_empty(50)])
        done.append("ends")

    by_inductor(numbered(1601), meanwhile)(torch.rand(50))
    assert done == ["begins", "innermost", "ends"]
    assert waits == ["waits", "done", "waits", "done"]
