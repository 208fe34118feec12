"""CUDA graphs of a compiled graph, each made of one call and played for all later ones that look the same.

Inductor has CUDA graphs of its own, for any program: trees of recordings that share memory, whose outputs live until
the next step. Here is one graph, the decode step, whose inputs are where they were. What there is to check is less, the
outputs are the caller's, and the first kernel of a step starts sooner (``docs/performance.md``).

    first call with these addresses     runs the kernels one by one, which loads and tunes them
    second call                         records them, then plays the recording
    later calls                         copy tokens and positions into it, and play it
    caches have grown                   records them anew, in place of the recording before

So a program that has its tensors elsewhere in every call is never recorded, and never waits for a recording either.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..kernels.internals import cuda
from ..kernels.internals.tensors import memory_of
from ..passes.analysis.recordable import RecordedInputs
from .report import CudaGraphs, CudaGraphUse, GraphReport

log = logging.getLogger(__name__)

#: Recordings that a graph keeps, of the calls that it played last: other caches, other batch sizes.
MOST = 32

#: Calls that a graph remembers without having recorded them.
MOST_SEEN = 128

#: What becomes of one result of a recording: a function of a call's inputs, and of its copies of memory made.
Result = Callable[[list[Any], list[torch.Tensor]], Any]

#: Recording waits for the device and empties the allocator's cache, which ends what another thread records.
_ONE_AT_A_TIME = threading.Lock()

_ALL: weakref.WeakSet[Recordings] = weakref.WeakSet()


class Recordings:
    """A compiled graph that records itself.

    Called with a list of the graph's inputs, as the compiled graph is with them one by one, and with what says where
    the caches among them are (``Caches.places``). Threads do not share recordings, which have memory of their own to
    work in.
    """

    def __init__(self, compiled: Callable[..., Sequence[Any]], inputs: RecordedInputs, report: GraphReport) -> None:
        self._compiled = compiled
        self._inputs = inputs
        self._report = report
        self._off = False
        self._threads = threading.local()
        _ALL.add(self)

    def begin(self) -> torch.cuda.Stream | None:
        """Wait for what this thread last ran on another stream: the next call writes where that one reads.

        Returns the stream that the next call runs on, where it is another one. Memory that calls work in is not to be
        given to anybody else before it is done.
        """
        if torch.cuda.is_current_stream_capturing():
            return None
        mine, stream = self._mine(), torch.cuda.current_stream(self._inputs.device)
        if stream == mine.ran_on:
            return None
        stream.wait_stream(mine.ran_on)
        mine.ran_on = stream
        for recording in mine.recordings:
            for copy in recording.copies:
                copy.record_stream(stream)
        return stream

    def __call__(self, inputs: list[Any], places: list[int]) -> Sequence[Any]:
        """The results of a call that :meth:`begin` stands before."""
        if torch.cuda.is_current_stream_capturing():  # somebody else records the program
            return self._compiled(*inputs)
        mine = self._mine()
        sizes = [inputs[place] if dim is None else inputs[place].shape[dim] for place, dim in self._inputs.sizes]
        recording = mine.recordings[-1] if mine.recordings else None
        if recording is None or not recording.is_of(inputs, sizes, places):
            recording = self._find(mine, inputs, sizes, places)
            if recording is None:
                return self._compiled(*inputs)
        return recording.play(inputs)

    def release(self) -> None:
        """Let go of all recordings."""
        self._threads = threading.local()

    def _mine(self) -> _Thread:
        try:
            return self._threads.mine
        except AttributeError:
            self._threads.mine = _Thread(self._inputs.device)
            return self._threads.mine

    def _find(self, mine: _Thread, inputs: list[Any], sizes: list[int], places: list[int]) -> Recording | None:
        """The recording for a call, the last of ``mine`` from now on; None where the call is to run by itself."""
        if self._off:
            return None
        found = next((one for one in mine.recordings if one.is_of(inputs, sizes, places)), None)
        if found is not None:
            mine.recordings.remove(found)
            mine.recordings.append(found)
            return found
        look = Look(sizes, places, self._addresses(inputs))
        if look in mine.seen:
            mine.seen.remove(look)
            return self._record(mine, inputs, look)
        if mine.drop_smaller(look):  # that has loaded the kernels
            return self._record(mine, inputs, look, again=True)
        mine.seen.append(look)
        return None

    def _addresses(self, inputs: list[Any]) -> list[int | None]:
        """For each input where it is, None for those that may be anywhere."""
        addresses: list[int | None] = [None] * len(inputs)
        for place in self._inputs.fixed:
            addresses[place] = inputs[place].data_ptr()
        return addresses

    def _record(self, mine: _Thread, inputs: list[Any], look: Look, again: bool = False) -> Recording | None:
        """A recording of this call, the last of ``mine``. None where it fails: for good, or until the call comes
        ``again``."""
        try:
            with _ONE_AT_A_TIME:
                recording = record(self._compiled, self._inputs, inputs, look, mine)
        except RuntimeError as error:  # no memory for it is one, too
            if again:
                log.debug("graph %d: recorded when this call comes again: %s", self._report.index, error)
                mine.seen.append(look)
                return None
            self._off = True
            detail = f"recording failed: {str(error).splitlines()[0]}"
            self._report.cuda_graphs = CudaGraphs(CudaGraphUse.NOT_USED, detail)
            log.warning("graph %d runs without CUDA graphs: recording failed: %s", self._report.index, error)
            return None
        self._report.has_recorded()
        if len(mine.recordings) == MOST:
            del mine.recordings[0]
        mine.recordings.append(recording)
        return recording


class Look(NamedTuple):
    """What calls have in common for which one recording serves.

    Attributes:
        sizes: of symbols, as ``RecordedInputs.sizes`` has them.
        places: where caches are (``Caches.places``).
        addresses: of the other tensors that stay where they are, None for all other inputs.
    """

    sizes: list[int]
    places: list[int]
    addresses: list[int | None]


class _Thread:
    """What a thread has recorded of a graph, the last one played at the end, and where."""

    def __init__(self, device: torch.device) -> None:
        self.recordings: list[Recording] = []
        self.seen: collections.deque[Look] = collections.deque(maxlen=MOST_SEEN)  # calls that were not recorded
        self.stream = torch.cuda.Stream(device)
        self.ran_on = torch.cuda.current_stream(device)
        # Nothing that a recording leaves behind is read by another one, so that all may work in the same memory.
        self.pool = torch.cuda.graph_pool_handle()

    def drop_smaller(self, look: Look) -> bool:
        """Let go of the last recording of the same calls from before their caches have grown; whether there was one."""
        for recording in reversed(self.recordings):
            before = recording.look
            if before.sizes == look.sizes and recording.inputs.have_grown(before.places, look.places):
                self.recordings.remove(recording)
                return True
        return False


@dataclasses.dataclass(eq=False)
class Recording:
    """One CUDA graph.

    Attributes:
        graph: it.
        inputs: of the graph that was recorded.
        look: of the call that was recorded.
        copies: what the inputs to copy are copied to.
        made: memory of results, of which a caller gets a copy.
        results: for each result a function of a call's inputs and of its copies of what was ``made``.
    """

    graph: torch.cuda.CUDAGraph
    inputs: RecordedInputs
    look: Look
    copies: list[torch.Tensor]
    made: list[torch.Tensor]
    results: list[Result]

    def is_of(self, inputs: list[Any], sizes: list[int], places: list[int]) -> bool:
        """Whether it does what a call with ``inputs`` would do."""
        look = self.look
        return (
            sizes == look.sizes
            and places == look.places
            and cuda.same_addresses(inputs, look.addresses, self.inputs.fixed)
        )

    def play(self, inputs: list[Any]) -> list[Any]:
        """The results of a call with ``inputs``."""
        if self.copies:
            cuda.copy_each(self.copies, [_compact(inputs[place]) for place in self.inputs.copied])
        self.graph.replay()
        if self.inputs.written:
            torch.autograd.graph.increment_version([inputs[place] for place in self.inputs.written])
        made = [memory.clone() for memory in self.made]
        return [result(inputs, made) for result in self.results]


def record(
    compiled: Callable[..., Sequence[Any]],
    plan: RecordedInputs,
    inputs: list[Any],
    look: Look,
    thread: _Thread,
) -> Recording:
    """Record a call of ``compiled`` with ``inputs``, which it does not run.

    Raises:
        RuntimeError: if the call does what cannot be recorded, such as waiting for the device. Nothing has happened.
    """
    inputs = list(inputs)
    copies = []
    with torch.inference_mode(False), torch.no_grad():  # for calls in any mode
        for index in plan.copied:
            value = inputs[index]
            inputs[index] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            copies.append(_compact(inputs[index]).copy_(_compact(value)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(plan.device):
        before = torch.cuda.current_stream()
        # What cuBLAS works in is either the recording's or nobody's: neither is to find the other's later.
        cuda.forget_cublas_workspaces()
        try:
            with torch.cuda.graph(graph, pool=thread.pool, stream=thread.stream, capture_error_mode="thread_local"):
                results = compiled(*inputs)
        except BaseException:
            _end(plan.device, thread, before)
            raise
        finally:
            cuda.forget_cublas_workspaces()
    made, outputs = _results(results, inputs, plan)
    return Recording(graph, plan, look, copies, made, outputs)


def _end(device: torch.device, thread: _Thread, stream: torch.cuda.Stream) -> None:
    """Bring torch back to ``stream`` from a recording that failed.

    Where CUDA does not give a graph, ``CUDAGraph.capture_end`` raises before it tells the allocator and the random
    generators that recording is over (torch 2.11), and ``torch.cuda.graph`` stays on its own stream. A recording that
    succeeds tells the generators.
    """
    torch.cuda.set_stream(stream)
    with contextlib.suppress(RuntimeError):
        cuda.end_allocation_to_pool(device.index, thread.pool)
    with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=thread.stream):
        torch.zeros(1, device=device)
    torch.cuda.set_stream(stream)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` without its repetitions, which memory has once."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _results(
    results: Sequence[Any], inputs: list[Any], plan: RecordedInputs
) -> tuple[list[torch.Tensor], list[Result]]:
    """The memory that results are made in, and how a caller gets each: an input, a view of one, or a copy."""
    places = {_memory(value): place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)}
    among = collections.Counter(_memory(result) for result in results if isinstance(result, torch.Tensor))
    made: dict[int, tuple[int, torch.Tensor]] = {}
    found: list[Result] = []
    for result in results:
        if not isinstance(result, torch.Tensor):
            found.append(lambda inputs, made, result=result: result)
            continue
        memory = _memory(result)
        place = places.get(memory)
        if place is not None:
            same = result is inputs[place]
            found.append(_of_input(place) if same else _view_of_input(place, result, inputs[place], plan))
        elif among[memory] == 1 and _is_copied_as_it_is(result):
            index, _ = made.setdefault(memory, (len(made), result))
            found.append(_copied(index))
        else:  # copies share memory where results do
            index, _ = made.setdefault(memory, (len(made), _whole(result)))
            found.append(_view_of_copy(index, result))
    return [memory for _, memory in made.values()], found


def _of_input(place: int) -> Result:
    return lambda inputs, made: inputs[place]


def _view_of_input(place: int, result: torch.Tensor, recorded: torch.Tensor, plan: RecordedInputs) -> Result:
    """The same view of a call's own input. One that is copied may have other strides there: then a copy of the view."""
    if result.dtype != recorded.dtype:
        raise RuntimeError(f"a result is the memory of an input of {recorded.dtype} read as {result.dtype}")
    shape, strides, of_input = result.shape, result.stride(), recorded.stride()
    offset = result.storage_offset() - recorded.storage_offset()
    own = result if place in plan.copied else None

    def view(inputs: list[Any], made: list[torch.Tensor]) -> torch.Tensor:
        now = inputs[place]
        if own is not None and now.stride() != of_input:
            return own.clone()
        return now.as_strided(shape, strides, now.storage_offset() + offset)

    return view


def _copied(index: int) -> Result:
    return lambda inputs, made: made[index]


def _view_of_copy(index: int, result: torch.Tensor) -> Result:
    dtype, layout = result.dtype, (result.shape, result.stride(), result.storage_offset())
    return lambda inputs, made: made[index].view(dtype).as_strided(*layout)


def _memory(tensor: torch.Tensor) -> int:
    return memory_of(tensor)


def _is_copied_as_it_is(tensor: torch.Tensor) -> bool:
    """Whether a clone has the strides of the original: it has no gaps and nothing twice."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The memory behind a tensor, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def release_all() -> None:
    """Let go of all recordings of this process."""
    for recordings in list(_ALL):
        recordings.release()
