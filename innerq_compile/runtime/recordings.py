"""When calls of a compiled graph are recorded as CUDA graphs, and which recording is replayed for a call.

Inductor has CUDA graphs of its own, for any program: trees of recordings that share memory, whose outputs live until
the next step. Here is one graph, the decode step, whose inputs are where they were. What there is to check is less, the
outputs are the caller's, and the first kernel of a step starts sooner (``docs/lab/host-cost.md``).

    first call with these addresses     runs the kernels one by one, which loads and tunes them
    second call                         records them, then replays the recording
    later calls                         copy tokens and positions into it, and replay it
    caches have grown                   records them anew, in place of the recording before

So a program that has its tensors elsewhere in every call is never recorded, and never waits for a recording either.
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

#: Recordings that a thread keeps of a graph, of the calls that it replayed last: other caches, other batch sizes.
MAX_RECORDINGS = 32

#: Calls that a thread remembers without having recorded them.
MAX_UNRECORDED = 128

#: Recording waits for the device and empties the allocator's cache, which ends what another thread records.
_CAPTURE_LOCK = threading.Lock()

#: All that there are in this process, to be released, and what guards them.
_EXISTING: weakref.WeakSet[Recordings] = weakref.WeakSet()
_EXISTING_LOCK = threading.Lock()


class Recordings:
    """A compiled graph that records itself.

    Called with a list of the graph's inputs, as the compiled graph is with them one by one, and with what says where
    the caches among them are (``Caches.memory``). Threads do not share recordings, which have memory of their own to
    work in.

    Args:
        compiled: the compiled graph.
        inputs: what is known of its inputs.
        report: the graph's report.
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
        """Wait for what this thread last ran on another stream: the next call writes where that one reads.

        Returns the stream that the next call runs on, where it is another one. Memory that calls work in is not to be
        given to anybody else before it is done.
        """
        if torch.cuda.is_current_stream_capturing():
            return None
        own, stream = self._of_this_thread(), torch.cuda.current_stream(self._inputs.device)
        if stream == own.last_stream:
            return None
        own.moves_to(stream)
        return stream

    def __call__(self, inputs: list[Any], memory: list[int]) -> Sequence[Any]:
        """The results of a call that :meth:`begin` stands before."""
        if torch.cuda.is_current_stream_capturing():  # somebody else records the program
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
        """Let go of all recordings."""
        self._by_thread = threading.local()

    def _of_this_thread(self) -> _ThreadRecordings:
        try:
            return self._by_thread.own
        except AttributeError:
            self._by_thread.own = _ThreadRecordings(self._inputs.device)
            return self._by_thread.own

    def _find(self, own: _ThreadRecordings, inputs: list[Any], sizes: list[int], memory: list[int]) -> Recording | None:
        """The recording for a call, the last of ``own`` from now on; None where the call is to run by itself."""
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
        if own.drop_smaller(key):  # that has loaded the kernels
            return self._record(own, inputs, key, again=True)
        own.unrecorded.append(key)
        return None

    def _addresses(self, inputs: list[Any]) -> list[int | None]:
        """For each input where it is, None for those that may be anywhere."""
        addresses: list[int | None] = [None] * len(inputs)
        for place in self._inputs.fixed:
            addresses[place] = inputs[place].data_ptr()
        return addresses

    def _record(self, own: _ThreadRecordings, inputs: list[Any], key: CallKey, again: bool = False) -> Recording | None:
        """A recording of this call, the last of ``own`` from now on.

        None where recording fails. Then the graph runs without from now on; with ``again`` only until the call returns.
        """
        try:
            with _CAPTURE_LOCK:
                recording = record(self._compiled, self._inputs, inputs, key, own.place)
        except RuntimeError as error:  # no memory for it is one, too
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
    """What a thread has recorded of a graph.

    Attributes:
        place: where it records.
        recordings: those that are kept, the one that was replayed last at the end.
        unrecorded: keys of calls that were not recorded.
        last_stream: the stream that the graph ran on last.
    """

    def __init__(self, device: torch.device) -> None:
        self.place = CapturePlace(device)
        self.recordings: list[Recording] = []
        self.unrecorded: collections.deque[CallKey] = collections.deque(maxlen=MAX_UNRECORDED)
        self.last_stream = torch.cuda.current_stream(device)

    def moves_to(self, stream: torch.cuda.Stream) -> None:
        """Let ``stream`` wait for what ran last, and keep what recordings copy inputs to until it is done with them."""
        stream.wait_stream(self.last_stream)
        self.last_stream = stream
        for recording in self.recordings:
            for copy in recording.copies:
                copy.record_stream(stream)

    def drop_smaller(self, key: CallKey) -> bool:
        """Let go of the last recording of the same calls from before their caches have grown; whether there was one."""
        for recording in reversed(self.recordings):
            before = recording.key
            if before.sizes == key.sizes and recording.inputs.have_grown(before.memory, key.memory):
                self.recordings.remove(recording)
                return True
        return False


def release_all() -> None:
    """Let go of all recordings of this process."""
    with _EXISTING_LOCK:
        existing = list(_EXISTING)
    for recordings in existing:
        recordings.release()
