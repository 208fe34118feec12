"""Recording and replay of a compiled graph as CUDA graphs.

Inductor has CUDA graphs for programs of any kind: trees of recordings that share memory, whose outputs are valid until
the next step. The recordings here are for a single graph, the decode step, most of whose inputs keep their addresses.
They check less before a replay, the outputs belong to the caller, and the first kernel of a step starts earlier
(``docs/lab/host-cost.md``).

    first call with these addresses     launches the kernels one by one, which loads and tunes them
    second call                         records them, then replays the recording
    later calls                         copy tokens and positions to its inputs, and replay it
    first call after caches have grown  records again, and drops the recording before

A program whose tensors have other addresses in every call is never recorded.
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
from .recording import CallKey, CapturePlace, Recording, record
from .report import CudaGraphs, CudaGraphUse, GraphReport

log = logging.getLogger(__name__)

#: How many recordings of a graph a thread keeps, for different caches and batch sizes. The least recently used one is
#: dropped first.
MAX_RECORDINGS = 32

#: How many keys of calls that were not recorded a thread keeps.
MAX_UNRECORDED = 128

#: Starting a recording synchronizes with the device and empties the allocator's cache, which would break the recording
#: of another thread.
_CAPTURE_LOCK = threading.Lock()

#: All recordings of this process, for :func:`release_all`.
_EXISTING: weakref.WeakSet[Recordings] = weakref.WeakSet()
_EXISTING_LOCK = threading.Lock()


class Recordings:
    """A compiled graph that is recorded and replayed as CUDA graphs.

    Called with a list of the inputs of the compiled graph, and with ``Caches.memory``. Each thread has recordings of
    its own, because a recording has its own working memory.

    Args:
        compiled: The compiled graph, called with the inputs one by one.
        inputs: Its inputs, and how they are used.
        report: The report of the graph.
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
        """Prepare for a call. If it runs on another stream than the last one, its stream waits for that one.

        Without that, the call could overwrite memory that the last one still reads.

        Returns:
            The stream of the call if it is another one than before, else None. The allocator has to be told that it
            uses the buffers of earlier calls.
        """
        if torch.cuda.is_current_stream_capturing():
            return None
        own, stream = self._of_this_thread(), torch.cuda.current_stream(self._inputs.device)
        if stream == own.last_stream:
            return None
        own.moves_to(stream)
        return stream

    def __call__(self, inputs: list[Any], memory: list[int]) -> Sequence[Any]:
        """Run a call, by replay if there is a recording for it. :meth:`begin` was called before."""
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
        """Drop all recordings of the graph."""
        self._by_thread = threading.local()

    def _of_this_thread(self) -> _ThreadRecordings:
        try:
            return self._by_thread.own
        except AttributeError:
            self._by_thread.own = _ThreadRecordings(self._inputs.device)
            return self._by_thread.own

    def _find(self, own: _ThreadRecordings, inputs: list[Any], sizes: list[int], memory: list[int]) -> Recording | None:
        """The recording for a call, moved to the end of the list; None if the call has to run without one."""
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
        if own.drop_smaller(key):  # the kernels have been loaded before
            return self._record(own, inputs, key, again=True)
        own.unrecorded.append(key)
        return None

    def _addresses(self, inputs: list[Any]) -> list[int | None]:
        """The addresses of the inputs; None for those that are copied."""
        addresses: list[int | None] = [None] * len(inputs)
        for place in self._inputs.fixed:
            addresses[place] = inputs[place].data_ptr()
        return addresses

    def _record(self, own: _ThreadRecordings, inputs: list[Any], key: CallKey, again: bool = False) -> Recording | None:
        """Record this call, and add the recording to the end of the list.

        Args:
            own: The recordings of this thread.
            inputs: The inputs of the call.
            key: Its key.
            again: Whether the same calls were recorded before, with smaller caches.

        Returns:
            The recording; None if it failed. After that, calls of the graph are not recorded any more. If ``again``,
            this call is recorded when it is repeated.
        """
        try:
            with _CAPTURE_LOCK:
                recording = record(self._compiled, self._inputs, inputs, key, own.place)
        except RuntimeError as error:  # including out of memory
            if again:
                log.debug("graph %d: recorded when this call comes again: %s", self._report.index, error)
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
    """The recordings of a graph that belong to one thread.

    Attributes:
        place: The stream and the memory pool for recordings.
        recordings: The recordings, least recently used first.
        unrecorded: The keys of calls that were not recorded.
        last_stream: The stream of the last call.
    """

    def __init__(self, device: torch.device) -> None:
        self.place = CapturePlace(device)
        self.recordings: list[Recording] = []
        self.unrecorded: collections.deque[CallKey] = collections.deque(maxlen=MAX_UNRECORDED)
        self.last_stream = torch.cuda.current_stream(device)

    def moves_to(self, stream: torch.cuda.Stream) -> None:
        """Let ``stream`` wait for the last call, and tell the allocator that it uses the inputs of recordings."""
        stream.wait_stream(self.last_stream)
        self.last_stream = stream
        for recording in self.recordings:
            for copy in recording.copies:
                copy.record_stream(stream)

    def drop_smaller(self, key: CallKey) -> bool:
        """Drop the last recording of the same calls with smaller caches. Returns whether there was one."""
        for recording in reversed(self.recordings):
            before = recording.key
            if before.sizes == key.sizes and recording.inputs.have_grown(before.memory, key.memory):
                self.recordings.remove(recording)
                return True
        return False


def release_all() -> None:
    """Drop all recordings of this process."""
    with _EXISTING_LOCK:
        existing = list(_EXISTING)
    for recordings in existing:
        recordings.release()
