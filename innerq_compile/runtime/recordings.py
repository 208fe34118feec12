"""Decides when calls of a compiled graph are recorded as CUDA graphs, and which recording is replayed for a call.

Inductor's own CUDA graphs support any program: trees of recordings that share memory, whose outputs are valid until the
next step. This module supports one graph, the decode step, whose inputs mostly keep their addresses. So there is less
to check, outputs belong to the caller, and the first kernel of a step starts earlier (``docs/lab/host-cost.md``).

    first call with these addresses     runs kernel by kernel, which loads and tunes the kernels
    second call                         is recorded, and the recording is replayed
    later calls                         copy tokens and positions into the recording and replay it
    first call after caches have grown  is recorded, and the new recording replaces the old one

A program whose tensors have other addresses in every call is never recorded, so it does not pay for recordings either.
"""

from __future__ import annotations

import collections
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..passes.analysis.recordable import RecordedInputs
from .recording import CallKey, CaptureResources, Recording, record
from .report import CudaGraphs, CudaGraphUse, GraphReport

log = logging.getLogger(__name__)

#: The number of recordings of a graph that a thread keeps, for different caches and batch sizes.
MAX_RECORDINGS = 32

#: The number of keys that a thread keeps of calls that were not recorded.
MAX_UNRECORDED = 128

#: Recording synchronizes with the device and empties the allocator's cache, which would break a concurrent capture.
_CAPTURE_LOCK = threading.Lock()

#: All instances in this process, for release_all, and their lock.
_EXISTING: weakref.WeakSet[Recordings] = weakref.WeakSet()
_EXISTING_LOCK = threading.Lock()


class Recordings:
    """A compiled graph that records its calls.

    Called with a list of the graph's inputs, and with addresses and capacities of the caches among them
    (``Caches.memory``). Threads do not share recordings, because each recording writes to its own memory.

    Args:
        compiled: the compiled graph.
        inputs: how recordings treat its inputs.
        report: the report of the graph.
    """

    def __init__(self, compiled: Callable[..., Sequence[Any]], inputs: RecordedInputs, report: GraphReport) -> None:
        self._compiled = compiled
        self._inputs = inputs
        self._report = report
        self._disabled = False
        self._by_thread = threading.local()
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
        own, stream = self._of_this_thread(), torch.cuda.current_stream(self._inputs.device)
        if stream == own.last_stream:
            return None
        own.moves_to(stream)
        return stream

    def __call__(self, inputs: list[Any], memory: list[int]) -> Sequence[Any]:
        """The results of a call. :meth:`begin` has to be called before."""
        if torch.cuda.is_current_stream_capturing():  # the program itself is being recorded
            return self._compiled(*inputs)
        own = self._of_this_thread()
        sizes = [inputs[place] if dim is None else inputs[place].shape[dim] for place, dim in self._inputs.sizes]
        recording = own.recordings[-1] if own.recordings else None
        if recording is None or not recording.serves(inputs, sizes, memory):
            recording = self._find(own, inputs, sizes, memory)
            if recording is None:
                return self._compiled(*inputs)
        return recording.replay(inputs)

    def release(self) -> None:
        """Release all recordings."""
        self._by_thread = threading.local()

    def _of_this_thread(self) -> _ThreadRecordings:
        try:
            return self._by_thread.own
        except AttributeError:
            self._by_thread.own = _ThreadRecordings(self._inputs.device)
            return self._by_thread.own

    def _find(self, own: _ThreadRecordings, inputs: list[Any], sizes: list[int], memory: list[int]) -> Recording | None:
        """The recording for a call, moved to the end of ``own``; None if the call is to run without a recording."""
        if self._disabled:
            return None
        found = next((one for one in own.recordings if one.serves(inputs, sizes, memory)), None)
        if found is not None:
            own.recordings.remove(found)
            own.recordings.append(found)
            return found
        key = CallKey(sizes, memory, self._addresses(inputs))
        if key in own.unrecorded:
            own.unrecorded.remove(key)
            return self._record(own, inputs, key)
        if own.drop_smaller(key):  # the kernels are loaded already
            return self._record(own, inputs, key, again=True)
        own.unrecorded.append(key)
        return None

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
                recording = record(self._compiled, self._inputs, inputs, key, own.resources)
        except RuntimeError as error:  # also if there is not enough memory
            if again:
                log.debug("graph %d: recording failed, to be tried again: %s", self._report.index, error)
                own.unrecorded.append(key)
                return None
            self._disabled = True
            detail = f"recording failed: {str(error).splitlines()[0]}"
            self._report.cuda_graphs = CudaGraphs(CudaGraphUse.NOT_USED, detail)
            log.warning("graph %d runs without CUDA graphs: recording failed: %s", self._report.index, error)
            return None
        self._report.has_recorded()
        if len(own.recordings) == MAX_RECORDINGS:
            del own.recordings[0]
        own.recordings.append(recording)
        return recording


class _ThreadRecordings:
    """The recordings of a graph by one thread.

    Attributes:
        resources: stream and memory pool to record with.
        recordings: the recordings, the last replayed one at the end.
        unrecorded: keys of calls that have run once without being recorded.
        last_stream: the stream of the last call.
    """

    def __init__(self, device: torch.device) -> None:
        self.resources = CaptureResources(device)
        self.recordings: list[Recording] = []
        self.unrecorded: collections.deque[CallKey] = collections.deque(maxlen=MAX_UNRECORDED)
        self.last_stream = torch.cuda.current_stream(device)

    def moves_to(self, stream: torch.cuda.Stream) -> None:
        """Let ``stream`` wait for the last call, and tell the allocator that it uses the copies of inputs."""
        stream.wait_stream(self.last_stream)
        self.last_stream = stream
        for recording in self.recordings:
            for copy in recording.copies:
                copy.record_stream(stream)

    def drop_smaller(self, key: CallKey) -> bool:
        """Drop the latest recording for the same caches with a smaller capacity. Returns whether there was one."""
        for recording in reversed(self.recordings):
            before = recording.key
            if before.sizes == key.sizes and recording.inputs.have_grown(before.memory, key.memory):
                self.recordings.remove(recording)
                return True
        return False


def release_all() -> None:
    """Release all recordings of this process."""
    with _EXISTING_LOCK:
        existing = list(_EXISTING)
    for recordings in existing:
        recordings.release()
