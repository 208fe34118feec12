"""Which calls of a graph are recorded, which are played, and what callers get; CUDA graphs themselves are emulated."""

from __future__ import annotations

import contextlib
import gc
import threading
import types
import weakref

import pytest
import torch

from innerq_compile.kernels.internals import cuda
from innerq_compile.passes.analysis.recordable import RecordedInputs
from innerq_compile.runtime import recordings
from innerq_compile.runtime.recordings import MAX_OUTLIVED, MAX_RECORDINGS, Recordings, release_all
from innerq_compile.runtime.report import GraphReport
from tests.helpers.emulated_graphs import Stream, emulated  # noqa: F401

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.fixture(autouse=True)
def no_calls_of_other_tests():
    recordings._LAST_CALLS.clear()


class Step:
    """A step like that of a decoder: it appends new numbers to its cache, and returns a result."""

    def __init__(self, results=lambda weight, held, new, out: [out], asked: bool = False) -> None:
        self.ran = 0
        self.report = GraphReport("decode", 1, 1, ())
        self._results = results
        device = torch.device("cpu")
        inputs = RecordedInputs(
            device,
            fixed=[0],
            copied=[2],
            written=[1],
            sizes=[(3, None)],
            caches=2,
            static_inner=[2, 3, 4, 7, 8, 9],
            cache=1,
        )
        self.recordings = Recordings(self._run, inputs, self.report, asked)

    def _run(self, weight, held, new, factor):
        self.ran += 1
        held += new
        return self._results(weight, held, new, held * weight * factor)

    def __call__(self, weight, held, new, factor=2, places=None):
        """The results; they are what the step gives by itself."""
        alone = held.clone()
        expected = self._results(weight, alone, new, (alone.add_(new)) * weight * factor)
        self.recordings.begin()
        results = self.recordings([weight, held, new, factor], places or [held.data_ptr()] * 9 + [len(held), 1, 1])
        assert torch.equal(held, alone)
        for result, right in zip(results, expected, strict=True):
            assert result is right if right is None else torch.equal(result, right)
        return results

    @property
    def recorded(self) -> int:
        return self.report.recorded


def new() -> torch.Tensor:
    return torch.randn(3)


def held(size: int = 4) -> torch.Tensor:
    return torch.randn(size, 3)


def test_the_second_call_is_recorded_and_later_ones_are_played():
    step, weight, memory = Step(), torch.randn(3), held()
    for call, (ran, recorded) in enumerate([(1, 0), (2, 1), (2, 1), (2, 1), (2, 1)]):
        step(weight, memory, new())
        assert (step.ran, step.recorded) == (ran, recorded), call


def test_results_are_the_callers():
    step, weight, memory = Step(), torch.randn(3), held()
    results = [step(weight, memory, new())[0] for _ in range(5)]
    kept = [result.clone() for result in results]
    step(weight, memory, new())
    assert all(map(torch.equal, results, kept))
    assert len({result.data_ptr() for result in results}) == 5


def test_other_addresses_are_recorded_when_they_come_again():
    step, weight = Step(), torch.randn(3)
    fresh = [held() for _ in range(2 * MAX_RECORDINGS)]  # all alive, else one may lie where another has been
    for memory in fresh:
        step(weight, memory, new())
    assert step.recorded == 0, "memory that is new in every call"
    memories = [held() for _ in range(3)]
    for _ in range(4):
        for memory in memories:
            step(weight, memory, new())
    assert step.recorded == 3


def places(*sides: tuple[int, int, int]) -> list[int]:
    """``Caches.memory`` of two caches: where codes and scales, and the rest of each, are, and their capacities."""
    addresses = [place for codes, rest, _ in sides for place in (codes, codes + 1, rest, rest + 1, rest + 2)]
    return [*addresses, *(room for *_, room in sides)]


def test_caches_that_grow_are_recorded_at_once():
    step, weight, memory = Step(), torch.randn(3), held()
    looks = [[10, 30, 8], [10, 30, 8], [20, 40, 9], [20, 40, 9], [50, 60, 12]]
    for (keys, values, room), counts in zip(looks, [(1, 0), (2, 1), (3, 2), (3, 2), (4, 3)], strict=True):
        step(weight, memory, new(), places=places((keys, 100, room), (values, 200, room)))
        assert (step.ran, step.recorded) == counts
    (recording,) = step.recordings._threads.get().recordings
    assert recording.key.memory[-1] == 12, "those of before are gone"


@pytest.mark.parametrize(
    ("factor", "keys", "values"),
    [
        (2, (20, 100, 8), (40, 200, 8)),
        (2, (20, 100, 9), (40, 300, 9)),
        (2, (10, 100, 8), (40, 200, 9)),
        (2, (20, 100, 7), (40, 200, 7)),
        (3, (20, 100, 9), (40, 200, 9)),
    ],
    ids=["no more room", "other values", "one has grown", "less room", "another number"],
)
def test_others_are_recorded_when_they_come_again(factor, keys, values):
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(2):
        step(weight, memory, new(), places=places((10, 100, 8), (30, 200, 8)))
    for recorded in (1, 2):
        step(weight, memory, new(), factor, places=places(keys, values))
        assert step.recorded == recorded
    assert len(step.recordings._threads.get().recordings) == 2


def test_caches_that_have_grown_and_cannot_be_recorded_at_once():
    """For example because a kernel has to be loaded first. The step runs without a recording; the next is recorded."""
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(2):
        step(weight, memory, new(), places=places((10, 100, 8), (30, 200, 8)))
    run, failed = step.recordings._compiled, []

    def loading(*args):
        if not failed:
            failed.append(True)
            raise RuntimeError("operation not permitted when stream is capturing")
        return run(*args)

    step.recordings._compiled = loading
    for recorded in (1, 2, 2):
        step(weight, memory, new(), places=places((20, 100, 9), (40, 200, 9)))
        assert step.recorded == recorded
    assert failed and "failed" not in str(step.report.cuda_graphs)


def test_a_weight_that_is_elsewhere_now():
    step, weight, memory = Step(), torch.nn.Parameter(torch.randn(3), requires_grad=False), held()
    for _ in range(3):
        step(weight, memory, new())
    weight.data = torch.randn(3)
    for recorded in (1, 2, 2):
        step(weight, memory, new())
        assert step.recorded == recorded


def test_sizes_and_numbers_are_compared():
    """The same memory with another size, and a number that is a constant of the recording."""
    step, weight, memory = Step(), torch.randn(3), held(6)
    for size, factor in [(6, 2), (5, 2), (6, 3), (6, 2), (5, 2), (6, 3)] * 2:
        step(weight, memory[:size], new(), factor)
    assert step.recorded == 3


def test_so_many_recordings_are_kept():
    step, weight, memory = Step(), torch.randn(3), held()
    for factor in range(MAX_RECORDINGS + 2):
        for _ in range(3):
            step(weight, memory, new(), factor)
    assert step.recorded == MAX_RECORDINGS + 2
    own = step.recordings._threads.get()
    assert [recording.key.sizes[0] for recording in own.recordings] == list(range(2, MAX_RECORDINGS + 2))
    step(weight, memory, new(), 5)
    assert [recording.key.sizes[0] for recording in own.recordings] == [2, 3, 4, *range(6, MAX_RECORDINGS + 2), 5]


def kept(step: Step) -> list:
    """The recordings that there are, of all threads."""
    return [one for thread in step.recordings._threads.all() for one in thread.recordings]


def test_few_recordings_outlive_their_caches(monkeypatch):
    """As of a program that allocates new caches for every request."""
    step, weight, lasting, requests = Step(), torch.randn(3), held(), []
    for _ in range(3):
        step(weight, lasting, new())
    for _ in range(2 * MAX_OUTLIVED):
        requests.append(held())  # all alive until they are recorded, so that none lies where another one was
        for _ in range(3):
            step(weight, requests[-1], new())
    assert step.recorded == 1 + 2 * MAX_OUTLIVED == len(kept(step))
    for one in kept(step):
        one.graph.calls.clear()  # the emulation holds what a CUDA graph does not
    last = requests[-1]
    del requests[:-1]
    gc.collect()
    another = held()
    for _ in range(3):
        step(weight, another, new())
    living = [one.cache() for one in kept(step) if not one.outlived]
    assert len(kept(step)) == 3 + MAX_OUTLIVED and {id(one) for one in living} == {id(lasting), id(last), id(another)}


def test_what_is_recorded_in_vain_is_bounded():
    """Caches take turns, one more than there are recordings, so that each has lost its own when it comes again."""
    step, weight = Step(), torch.randn(3)
    memories = [held() for _ in range(MAX_RECORDINGS + 1)]
    for _ in range(9):
        for memory in memories:
            step(weight, memory, new())
    assert MAX_RECORDINGS <= step.recorded <= 2 * MAX_RECORDINGS
    before = step.recorded
    for _ in range(400):
        step(weight, memories[0], new())
    for _ in range(2):
        for memory in memories:
            step(weight, memory, new())
    assert step.recorded > before, "who replays may record again"


def test_all_threads_together_keep_so_many(monkeypatch):
    """The latest ones, whichever thread they belong to."""
    monkeypatch.setattr(recordings, "MAX_RECORDINGS", 3)
    monkeypatch.setattr(recordings, "ALONE_FOR", 0)
    step, weight, memories, failures = Step(), torch.randn(3), [held() for _ in range(2)], []

    def work(factors: list[int], memory: torch.Tensor) -> None:
        try:
            for factor in factors:
                for _ in range(3):
                    step(weight, memory, new(), factor)
        except BaseException as error:
            failures.append(error)

    def run_beside(factors: list[int]) -> threading.Thread:
        release, done = threading.Event(), threading.Event()

        def body() -> None:
            work(factors, memories[1])
            done.set()
            release.wait(60)

        thread = threading.Thread(target=body)
        thread.start()
        assert done.wait(60)
        thread.release = release
        return thread

    work([2, 3], memories[0])
    thread = run_beside([5, 6])
    assert sorted(one.key.sizes[0] for one in kept(step)) == [3, 5, 6]
    step(weight, memories[0], new(), 3)
    step(weight, memories[0], new(), 4)
    step(weight, memories[0], new(), 4)
    assert sorted(one.key.sizes[0] for one in kept(step)) == [3, 4, 6]
    thread.release.set()
    thread.join()
    assert not failures


def test_a_thread_for_each_request():
    """The next one finds what the last one has recorded, and waits for it if that was on another stream."""
    step, weight, memory, failures = Step(), torch.randn(3), held(), []

    def work() -> None:
        try:
            for _ in range(3):
                step(weight, memory, new())
        except BaseException as error:
            failures.append(error)

    streams = [Stream(), Stream()]
    for stream in streams:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "current_stream", lambda device=None, stream=stream: stream)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            gc.collect()
    assert not failures and step.recorded == 1 and len(step.recordings._threads.all()) == 1
    assert streams[1].waited == [streams[0]]


@pytest.fixture
def disturbing(monkeypatch):
    """A capture changes the random generator for all threads, as with torch 2.11. Gives a list of when it was aside."""
    aside = []

    @contextlib.contextmanager
    def generator_aside(device):
        aside.append(device)
        yield

    monkeypatch.setattr(cuda, "CAPTURES_GENERATOR", True)
    monkeypatch.setattr(cuda, "generator_aside", generator_aside)
    return aside


def drawing(step: Step, aside: list) -> None:
    """Let ``step`` draw random numbers: it cannot be recorded while the generator is aside."""
    run = step.recordings._compiled

    def compiled(*args):
        if aside:
            aside.clear()
            raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
        return run(*args)

    step.recordings._compiled = compiled


def test_the_generator_of_other_threads_is_not_disturbed(disturbing):
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(3):
        step(weight, memory, new())
    assert step.recorded == 1 and len(disturbing) == 2, "it has held the pool first"


def test_random_numbers_where_a_capture_disturbs_other_threads(disturbing, caplog):
    step, weight, memory = Step(), torch.randn(3), held()
    drawing(step, disturbing)
    for _ in range(4):
        step(weight, memory, new())
    assert step.recorded == 0 and step.ran == 4
    assert str(step.report.cuda_graphs).startswith("no: it draws random numbers")
    assert not caplog.text, "no reason to warn"


def test_random_numbers_that_may_be_recorded(disturbing):
    """On request, and then with the program's own generator; the second recording knows it from the start."""
    step, weight, memories = Step(asked=True), torch.randn(3), [held(), held()]
    drawing(step, disturbing)
    for memory in memories:
        for _ in range(3):
            step(weight, memory, new())
    assert step.recorded == 2 and not disturbing


def test_repeated_elements_are_copied_once():
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(4):
        step(weight, memory, torch.randn(1).expand(3))
    assert step.recorded == 1


@pytest.mark.parametrize(
    "results",
    [
        lambda weight, held, new, out: [held, out],
        lambda weight, held, new, out: [out, held[1:], None],
        lambda weight, held, new, out: [held.t(), weight],
        lambda weight, held, new, out: [out[:, 1:], out.t()],
        lambda weight, held, new, out: [out.t(), (out + 1)[::2]],
        lambda weight, held, new, out: [out[:0], out.sum()[None].expand(4)],
    ],
)
def test_results_of_all_kinds(results):
    step, weight, memory = Step(results), torch.randn(3), held()
    kept, inputs = [], {memory.untyped_storage().data_ptr(), weight.untyped_storage().data_ptr()}
    first = step(weight, memory, new())
    for _ in range(4):
        later = step(weight, memory, new())
        for a, b in zip(first, later, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
                places = [t.untyped_storage().data_ptr() in inputs for t in (a, b)]
                assert places[0] == places[1], "a view of an input stays one"
                kept += [] if places[0] else [(b, b.clone())]
    assert all(torch.equal(result, copy) for result, copy in kept)
    assert step.recorded == 1


def test_results_that_share_memory_do_so_when_played():
    step, weight, memory = Step(lambda weight, held, new, out: [out, out[0]]), torch.randn(3), held()
    for _ in range(4):
        whole, row = step(weight, memory, new())
    whole[0] = 7
    assert step.recorded == 1 and torch.equal(row, torch.full((3,), 7.0))


@pytest.mark.parametrize(
    "results",
    [
        lambda weight, held, new, out: [new[1:], out],
        lambda weight, held, new, out: [new[None], held[2:, 1:]],
    ],
)
def test_views_of_inputs_that_are_slices(results):
    """Of each call's own tokens, wherever they lie in the caller's text; some lie otherwise than when recorded."""
    step, weight, text = Step(results), torch.randn(3), torch.randn(40, 3)
    memory = torch.randn(9, 3)[2:6]
    for at in range(8):
        piece = text[at]
        view, _ = step(weight, memory, piece)
        assert view.untyped_storage().data_ptr() == text.untyped_storage().data_ptr()
    for at in range(3):
        step(weight, memory, text.t()[:, at * 3 : at * 3 + 3][:, at])
    assert step.recorded == 1


def test_an_input_read_as_another_type_is_not_recorded():
    step, weight, memory = Step(lambda weight, held, new, out: [held.view(torch.int32)]), torch.randn(3), held()
    for _ in range(4):
        step(weight, memory, new())
    assert step.recorded == 0 and "recording failed: a result is a view of an input" in str(step.report.cuda_graphs)


def test_changes_in_place_are_counted():
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(4):
        before = memory._version
        step(weight, memory, new())
        assert memory._version > before
    assert step.recorded == 1


def test_recorded_in_inference_mode_and_played_outside():
    step, weight, memory = Step(), torch.randn(3), held()
    for mode in (True, True, True, False, True):
        with torch.inference_mode(mode):
            step(weight, memory, new())
    assert step.recorded == 1


def test_what_cannot_be_recorded_runs(caplog):
    step, weight, memory = Step(), torch.randn(3), held()
    run = step.recordings._compiled

    def waiting(weight, held, new, factor):
        result = run(weight, held, new, factor)
        assert new.sum().item() == new.sum().item()
        return result

    step.recordings._compiled = waiting
    for _ in range(4):
        step(weight, memory, new())
    assert step.recorded == 0
    assert str(step.report.cuda_graphs) == "no: recording failed: operation not permitted when stream is capturing"
    assert caplog.text.count("recording failed") == 1


@pytest.mark.parametrize("times", [1, 2])
def test_no_memory_to_record(monkeypatch, caplog, times):
    """What the allocator keeps is given back once; if that is not enough, steps run without a recording."""
    step, weight, memory = Step(), torch.randn(3), held()
    run, calls, emptied = step.recordings._compiled, [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(calls)))

    def hungry(*args):
        calls.append(len(calls))
        if 2 <= len(calls) < 2 + times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(*args)

    step.recordings._compiled = hungry
    for _ in range(4):
        step(weight, memory, new())
    assert emptied == [2]
    assert (step.recorded, len(calls)) == ((1, 3) if times == 1 else (0, 6))
    if times == 2:
        assert str(step.report.cuda_graphs) == "no: recording failed: CUDA out of memory"
        assert caplog.text.count("runs without CUDA graphs") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_other_errors_are_the_callers(error):
    step, weight, memory = Step(), torch.randn(3), held()
    run, calls = step.recordings._compiled, []

    def failing(*args):
        calls.append(len(calls))
        if len(calls) == 2:
            raise error
        return run(*args)

    step.recordings._compiled = failing
    step(weight, memory, new())
    with pytest.raises(error):
        step(weight, memory, new())
    for _ in range(3):
        step(weight, memory, new())
    assert step.recorded == 1


@pytest.mark.parametrize("before", [0, 4])
def test_inside_of_a_recording_of_the_user(monkeypatch, before):
    """Its kernels run one by one, also where there is a recording, and no other stream is waited for."""
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(before):
        step(weight, memory, new())
    ran, recorded = step.ran, step.recorded
    other = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: other)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for _ in range(3):
        step(weight, memory, new())
    assert (step.ran, step.recorded) == (ran + 3, recorded)
    assert not other.waited


def test_another_stream_waits_for_the_last(emulated, monkeypatch):  # noqa: F811
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(4):
        step(weight, memory, new())
    waits = len(emulated.waited)
    other = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: other)
    for _ in range(2):
        step(weight, memory, new())
    assert other.waited == [emulated] and len(emulated.waited) == waits
    assert step.recorded == 1


def test_another_stream_is_done_with_what_is_let_go(emulated, monkeypatch):  # noqa: F811
    """Of all recordings, also of those that it did not play; once, not at every step."""
    step, weight = Step(), torch.randn(3)
    for memory in (held(), held()):
        for _ in range(3):
            step(weight, memory, new())
    assert step.recorded == 2
    other = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: other)
    for _ in range(2):
        step(weight, memory, new())
    copies = [copy.data_ptr() for one in step.recordings._threads.get().recordings for copy in one.copies]
    assert sorted(other.keeps) == sorted(copies) and len(set(copies)) == 2
    assert not emulated.keeps


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_is_recorded_while_other_threads_call_graphs(asked, monkeypatch):
    """Unless the user has asked for it. The report says so, until a thread is alone again."""
    step, weight, memory, failures = Step(asked=asked), torch.randn(3), held(), []
    before, stop, called = step.report.cuda_graphs, threading.Event(), threading.Event()

    def beside() -> None:
        try:
            step(weight, held(), new())
        except BaseException as error:
            failures.append(error)
        called.set()
        stop.wait(60)

    thread = threading.Thread(target=beside)
    thread.start()
    assert called.wait(60)
    for _ in range(3):
        step(weight, memory, new())
    assert step.recorded == asked
    assert ("several threads" in str(step.report.cuda_graphs)) is not asked
    if not asked:
        monkeypatch.setattr(recordings, "ALONE_FOR", 0)  # as after a while without a call of the other thread
        step(weight, memory, new())
        assert step.recorded == 1
        recordings._LAST_CALLS.clear()
        monkeypatch.undo()
    assert step.report.cuda_graphs == before
    stop.set()
    thread.join()
    assert not failures


def test_a_thread_that_has_ended_is_not_waited_for():
    step, weight = Step(), torch.randn(3)
    thread = threading.Thread(target=step, args=(weight, held(), new()))
    thread.start()
    thread.join()
    memory = held()
    for _ in range(2):
        step(weight, memory, new())
    assert step.recorded == 1


def test_threads_do_not_share(monkeypatch):
    """Two threads take turns, step by step."""
    monkeypatch.setattr(recordings, "ALONE_FOR", 0)
    step, weight, failures = Step(), torch.randn(3), []
    turns = [threading.Semaphore(1), threading.Semaphore(0)]

    def work(own: int) -> None:
        try:
            memory = held()
            for _ in range(4):
                turns[own].acquire(timeout=60)
                step(weight, memory, new())
                turns[1 - own].release()
        except BaseException as error:
            failures.append(error)
            turns[1 - own].release()

    threads = [threading.Thread(target=work, args=(own,)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and step.recorded == 2


def test_release():
    step, weight, memory = Step(), torch.randn(3), held()
    for _ in range(3):
        step(weight, memory, new())
    graph = weakref.ref(step.recordings._threads.get().recordings[0])
    release_all()
    gc.collect()
    assert graph() is None
    for recorded in (1, 2, 2):
        step(weight, memory, new())
        assert step.recorded == recorded


@pytest.mark.sampled(2)
@pytest.mark.parametrize("results", [lambda weight, held, new, out: [out], lambda weight, held, new, out: [held[1:]]])
def test_caches_are_not_held(results):
    step, weight, memory = Step(results), torch.randn(3), held()
    results = [step(weight, memory, new()) for _ in range(3)]
    gone = weakref.ref(memory)
    step.recordings._threads.get().recordings[0].graph.calls.clear()  # the emulation holds what a CUDA graph does not
    del memory, results
    gc.collect()
    assert gone() is None


def test_a_thread_waits_for_a_capture_before_it_compiles(monkeypatch):
    """One that has called nothing before: at the beginning of the capture nothing is known of it."""
    step, weight, memory, happened = Step(), torch.randn(3), held(), []
    capture = recordings.record

    def work() -> None:
        with recordings.at_work():
            happened.append("compiled")

    def record(*args):
        thread.start()
        thread.join(0.2)
        happened.append("recorded")
        return capture(*args)

    thread = threading.Thread(target=work)
    monkeypatch.setattr(recordings, "record", record)
    for _ in range(2):
        step(weight, memory, new())
    thread.join()
    assert happened == ["recorded", "compiled"] and step.recorded == 1


def test_a_capture_that_has_waited_looks_again_who_calls(monkeypatch):
    """While a thread waits for its turn, another one begins to compile."""
    step, weight, memory = Step(), torch.randn(3), held()

    class Lock:
        def __enter__(self):
            recordings._LAST_CALLS[threading.get_ident() + 1] = float("inf")  # another thread, in `at_work`

        def __exit__(self, *error):
            pass

    step(weight, memory, new())
    monkeypatch.setattr(recordings, "_CAPTURE_LOCK", Lock())
    other = types.SimpleNamespace(ident=threading.get_ident() + 1)
    monkeypatch.setattr(recordings.threading, "enumerate", lambda: [other])
    step(weight, memory, new())
    assert step.recorded == 0 and "several threads" in str(step.report.cuda_graphs)
    monkeypatch.undo()
    recordings._LAST_CALLS.clear()
    step(weight, memory, new())
    assert step.recorded == 1
