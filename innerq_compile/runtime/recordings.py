"""Decides when calls of a compiled graph are recorded as CUDA graphs, and which recording is replayed for a call.

Inductor's own CUDA graphs support any program: trees of recordings that share memory, whose outputs are valid until the
next step. This module supports one graph, the decode step, whose inputs mostly keep their addresses. So there is less
to check, outputs belong to the caller, and the first kernel of a step starts earlier (``docs/lab/host-cost.md``).

    first call with these addresses     runs kernel by kernel, which loads and tunes the kernels
    second call                         is recorded, and the recording is replayed
    later calls                         copy tokens and positions into the recording and replay it
    first call after caches have grown  is recorded, and the new recording replaces the old one

A program need not know of it. Results are its own, and calls may come from any thread and on any stream. Time and
memory are bounded: a program whose tensors have other addresses in every call is never recorded, one that returns to
addresses too seldom is recorded less often (``REPLAYS_PER_RECORDING``), the number of recordings is limited
(``MAX_RECORDINGS``, ``MAX_OUTLIVED``), and nothing is recorded while several threads call graphs (``ALONE_FOR``).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..kernels.internals import cuda
from ..passes.analysis.recordable import RecordedInputs
from .hoisted_inputs import Buffers
from .per_thread import PerThread
from .recording import CallKey, CaptureResources, Recording, record
from .report import CudaGraphs, CudaGraphUse, GraphReport

log = logging.getLogger(__name__)

#: The number of recordings of a graph, of all threads together, for different caches and batch sizes.
MAX_RECORDINGS = 32

#: The number of those whose caches are gone. The allocator often gives the memory of one request's caches to the next.
MAX_OUTLIVED = 4

#: After its first `MAX_RECORDINGS` a thread records a call only if it has replayed so many for each recording. A
#: recording takes as long as a few steps, which would be lost on caches that take turns so that each comes too late.
REPLAYS_PER_RECORDING = 8

#: The number of keys that a thread keeps of calls that were not recorded.
MAX_UNRECORDED = 128

#: A call is not recorded, unless the user has asked for CUDA graphs, if another thread has called a graph that can be
#: recorded within this many seconds. While a thread captures, waiting for the whole device is an error in all others,
#: and with torch 2.11 drawing random numbers may be.
ALONE_FOR = 1.0

#: When each thread has last called a graph; infinity while it compiles one, or runs one that is not recorded.
_LAST_CALLS: dict[int, float] = {}


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """Context of compilations, and of calls without a recording: other threads capture nothing meanwhile."""
    threading.current_thread()  # so that a thread that Python has not started is among the living ones
    own, before = threading.get_ident(), _LAST_CALLS.get(threading.get_ident())
    _LAST_CALLS[own] = math.inf
    try:
        with _CAPTURE_LOCK:  # the end of a capture that has begun before this thread could be seen
            pass
        yield
    finally:
        _LAST_CALLS[own] = math.inf if before == math.inf else time.monotonic()


#: Captures change state of the allocator and of the random generators that does not belong to a thread.
_CAPTURE_LOCK = threading.RLock()


def _in_a_forked_process() -> None:
    """The other threads, which may hold locks, are not in it."""
    global _CAPTURE_LOCK, _EXISTING_LOCK
    _CAPTURE_LOCK, _EXISTING_LOCK = threading.RLock(), threading.Lock()
    _LAST_CALLS.clear()
    for recordings in list(_EXISTING):
        recordings._keeping = threading.Lock()


os.register_at_fork(after_in_child=_in_a_forked_process)

#: Why a call is not recorded while other threads call graphs, too.
_OTHER_THREADS = CudaGraphs(
    CudaGraphUse.NOT_USED,
    "several threads call graphs at the same time, and a capture in one disturbs the others; mode='reduce-overhead' "
    "records all the same",
)

#: All instances in this process, for release_all, and their lock.
_EXISTING: weakref.WeakSet[Recordings] = weakref.WeakSet()
_EXISTING_LOCK = threading.Lock()


class Recordings:
    """A compiled graph that records its calls.

    Called with a list of the graph's inputs, and with addresses and capacities of the caches among them
    (``Caches.memory``). Threads do not share recordings, because each recording writes to its own memory. A new thread
    takes over those of one that has ended.

    Args:
        compiled: the compiled graph.
        inputs: how recordings treat its inputs.
        report: the report of the graph.
        asked: whether the user has asked for CUDA graphs.
    """

    def __init__(
        self,
        compiled: Callable[..., Sequence[Any]],
        inputs: RecordedInputs,
        report: GraphReport,
        asked: bool = False,
    ) -> None:
        self._compiled = compiled
        self._inputs = inputs
        self._report = report
        self._asked = asked
        self._use = report.cuda_graphs  # to be restored after `_OTHER_THREADS`
        self._disabled = False
        self._draws = False  # random numbers; found out only where it matters
        self._threads = PerThread(lambda: _ThreadRecordings(inputs.device))
        self._keeping = threading.Lock()  # held while the recordings of any thread are replaced
        with _EXISTING_LOCK:
            _EXISTING.add(self)

    def begin(self) -> torch.cuda.Stream | None:
        """Let the current stream wait for this thread's previous call if that ran on another stream.

        Both calls use the memory of the same recordings and buffers.

        Returns:
            The current stream if it has changed, so that the caller can tell the allocator about buffers that it uses;
            else None.
        """
        if torch.cuda.is_current_stream_capturing():
            return None
        _LAST_CALLS[threading.get_ident()] = time.monotonic()
        own, stream = self._threads.get(), torch.cuda.current_stream(self._inputs.device)
        if stream == own.last_stream:
            return None
        own.moves_to(stream)
        return stream

    def __call__(self, inputs: list[Any], memory: list[int]) -> Sequence[Any]:
        """The results of a call. :meth:`begin` has to be called before."""
        if torch.cuda.is_current_stream_capturing():  # the program itself is being recorded
            return self._compiled(*inputs)
        own = self._threads.get()
        sizes = [inputs[place] if dim is None else inputs[place].shape[dim] for place, dim in self._inputs.sizes]
        kept = own.recordings
        recording = kept[-1] if kept else None
        if recording is None or not recording.serves(inputs, sizes, memory):
            recording = self._find(own, inputs, sizes, memory)
            if recording is None:
                with at_work():  # which may load and tune kernels
                    return self._compiled(*inputs)
        own.replayed += 1
        return recording.replay(inputs)

    def release(self) -> None:
        """Release all recordings."""
        self._threads.forget()

    def buffers(self) -> Buffers:
        """The calling thread's buffers for hoisted inputs, which a recording reads where it has found them."""
        return self._threads.get().buffers

    def _find(self, own: _ThreadRecordings, inputs: list[Any], sizes: list[int], memory: list[int]) -> Recording | None:
        """The recording for a call, moved to the end of ``own``; None if the call is to run without a recording."""
        if self._disabled:
            return None
        found = next((one for one in own.recordings if one.serves(inputs, sizes, memory)), None)
        if found is not None:
            self._replace(own, found, found)
            return found
        key = CallKey(sizes, memory, self._addresses(inputs))
        if key in own.unrecorded:
            if not (own.may_record and self._may_capture()):
                return None
            own.unrecorded.remove(key)
            return self._record(own, inputs, key)
        if (smaller := own.smaller(key)) is not None and self._may_capture():
            self._replace(own, smaller, None)
            return self._record(own, inputs, key, again=True)  # the kernels are loaded already
        own.unrecorded.append(key)
        return None

    def _may_capture(self) -> bool:
        """Whether a capture disturbs no other thread, or the user has asked for it. If not, the report says so."""
        alone = self._asked or _is_alone()
        if not self._disabled:
            self._report.cuda_graphs = self._use if alone else _OTHER_THREADS
        return alone

    def _addresses(self, inputs: list[Any]) -> list[int | None]:
        """The addresses of inputs that usually keep theirs; None for all other inputs."""
        addresses: list[int | None] = [None] * len(inputs)
        for place in self._inputs.fixed:
            addresses[place] = inputs[place].data_ptr()
        return addresses

    def _record(self, own: _ThreadRecordings, inputs: list[Any], key: CallKey, again: bool = False) -> Recording | None:
        """Record a call and append the recording to ``own``. Returns None if recording fails.

        After a failure the graph is not recorded any more. If ``again`` is True, that is, if it was recorded before
        with smaller caches, only this call runs without a recording.
        """
        try:
            with _CAPTURE_LOCK:
                if not self._may_capture():  # another thread has called a graph while this one has waited
                    own.unrecorded.append(key)
                    return None
                recording = self._capture(own, inputs, key)
        except RuntimeError as error:
            if again:
                log.debug("graph %d: recording failed, to be tried again: %s", self._report.index, error)
                own.unrecorded.append(key)
            elif cuda.was_drawing(error):
                self._disable("it draws random numbers, and with torch 2.11 a capture disturbs those of other threads")
            else:
                self._disable(f"recording failed: {str(error).splitlines()[0]}")
                log.warning("graph %d runs without CUDA graphs: recording failed: %s", self._report.index, error)
            return None
        self._report.has_recorded()
        own.recorded += 1
        self._replace(own, None, recording)
        return recording

    def _capture(self, own: _ThreadRecordings, inputs: list[Any], key: CallKey) -> Recording:
        """Record a call, with a second attempt where the first one has told what it takes."""
        try:
            return record(self._compiled, self._inputs, inputs, key, own.resources, self._draws)
        except torch.OutOfMemoryError:  # a recording cannot have memory that the allocator keeps for others
            torch.cuda.empty_cache()
        except RuntimeError as error:
            if self._draws or not (self._asked and cuda.was_drawing(error)):
                raise
            self._draws = True
        return record(self._compiled, self._inputs, inputs, key, own.resources, self._draws)

    def _disable(self, reason: str) -> None:
        self._disabled = True
        self._report.cuda_graphs = CudaGraphs(CudaGraphUse.NOT_USED, reason)
        log.debug("graph %d is not recorded: %s", self._report.index, reason)

    def _replace(self, own: _ThreadRecordings, old: Recording | None, new: Recording | None) -> None:
        """Take ``old`` from the recordings of a thread, append ``new``, and drop what exceeds the limits."""
        with self._keeping:
            kept = tuple(one for one in own.recordings if one is not old)
            own.recordings = kept if new is None else (*kept, new)
            if new is None or new is old:
                return
            every = [one for thread in self._threads.all() for one in thread.recordings]
            every.sort(key=lambda one: one.used)
            outlived = [one for one in every if one.outlived]
            surplus = outlived[: max(0, len(outlived) - MAX_OUTLIVED)]
            every = [one for one in every if one not in surplus]
            surplus += every[: max(0, len(every) - MAX_RECORDINGS)]
            for thread in self._threads.all() if surplus else ():
                thread.recordings = tuple(one for one in thread.recordings if one not in surplus)


class _ThreadRecordings:
    """The recordings of a graph by one thread.

    Attributes:
        resources: stream and memory pool to record with.
        recordings: the recordings, the last replayed one at the end. Another thread may replace the tuple.
        buffers: the buffers for hoisted inputs.
        unrecorded: keys of calls that have run once without being recorded.
        recorded: how often the thread has recorded.
        replayed: how often it has replayed.
        last_stream: the stream of the last call.
    """

    def __init__(self, device: torch.device) -> None:
        self.resources = CaptureResources(device)
        self.recordings: tuple[Recording, ...] = ()
        self.buffers: Buffers = {}
        self.unrecorded: collections.deque[CallKey] = collections.deque(maxlen=MAX_UNRECORDED)
        self.recorded = 0
        self.replayed = 0
        self.last_stream = torch.cuda.current_stream(device)

    @property
    def may_record(self) -> bool:
        """Whether recordings have been used often enough for another one."""
        return self.recorded < MAX_RECORDINGS + self.replayed // REPLAYS_PER_RECORDING

    def moves_to(self, stream: torch.cuda.Stream) -> None:
        """Let ``stream`` wait for the last call, and tell the allocator that it uses the copies of inputs."""
        stream.wait_stream(self.last_stream)
        self.last_stream = stream
        for recording in self.recordings:
            for copy in recording.copies:
                copy.record_stream(stream)

    def smaller(self, key: CallKey) -> Recording | None:
        """The latest recording for the same caches with a smaller capacity."""
        for recording in reversed(self.recordings):
            before = recording.key
            if before.sizes == key.sizes and recording.inputs.have_grown(before.memory, key.memory):
                return recording
        return None


def _is_alone() -> bool:
    """Whether no other living thread has called a graph that can be recorded within the last `ALONE_FOR` seconds."""
    living, since = {thread.ident for thread in threading.enumerate()}, time.monotonic() - ALONE_FOR
    for thread, called in _LAST_CALLS.copy().items():
        if called < since or thread not in living:
            _LAST_CALLS.pop(thread, None)
    return not _LAST_CALLS.keys() - {threading.get_ident()}


def release_all() -> None:
    """Release all recordings of this process."""
    with _EXISTING_LOCK:
        existing = list(_EXISTING)
    for recordings in existing:
        recordings.release()
