"""One recording: the CUDA graph of one call, which is replayed for all calls with the same key."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..kernels.internals import cuda
from ..passes.analysis.recordable import RecordedInputs
from .recorded_results import Result, recorded_results


class CallKey(NamedTuple):
    """What calls must have in common to be served by the same recording.

    Attributes:
        sizes: values of the symbols in ``RecordedInputs.sizes``.
        memory: addresses and capacities of the caches (``Caches.memory``).
        addresses: the addresses of the inputs in ``RecordedInputs.fixed``; None for all other inputs.
    """

    sizes: list[int]
    memory: list[int]
    addresses: list[int | None]


class CaptureResources:
    """The stream and the memory pool with which a thread records the calls of a graph.

    Recordings can share the pool, because none reads memory that another one has written.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self._keeper: torch.cuda.CUDAGraph | None = None

    def keep_pool(self, device: torch.device) -> None:
        """Keep the pool while it has no recording: the allocator takes no capture into a pool that no graph holds."""
        if self._keeper is None:
            graph = torch.cuda.CUDAGraph()
            with _capturing(graph, device, self, draws=False):
                torch.zeros(1, device=device)  # an empty graph would be warned of
            self._keeper = graph


@dataclasses.dataclass(eq=False)
class Recording:
    """A recorded call.

    Attributes:
        graph: the CUDA graph.
        inputs: how the recording treats the inputs.
        key: the key of the recorded call.
        copies: the tensors that inputs in ``RecordedInputs.copied`` are copied to.
        made: memory of results that is copied for the caller.
        results: how to compute each result.
        cache: the input ``RecordedInputs.cache`` of the recorded call; None if there is none.
        used: when it was last replayed, by ``time.monotonic()``.
    """

    graph: torch.cuda.CUDAGraph
    inputs: RecordedInputs
    key: CallKey
    copies: list[torch.Tensor]
    made: list[torch.Tensor]
    results: list[Result]
    cache: weakref.ref[torch.Tensor] | None = None
    used: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def outlived(self) -> bool:
        """Whether the cache of the recorded call is gone. Another one may still come to lie in the same memory."""
        return self.cache is not None and self.cache() is None

    def serves(self, inputs: list[Any], sizes: list[int], memory: list[int]) -> bool:
        """Whether the recording can be replayed for a call. Avoids creating the :class:`CallKey` of the call."""
        key = self.key
        return (
            sizes == key.sizes
            and memory == key.memory
            and cuda.same_addresses(inputs, key.addresses, self.inputs.fixed)
        )

    def replay(self, inputs: list[Any]) -> list[Any]:
        """Replay the recording for ``inputs`` and return the results."""
        self.used = time.monotonic()
        if self.outlived and self.inputs.cache is not None:  # another cache lies in its memory now
            self.cache = weakref.ref(inputs[self.inputs.cache])
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
    key: CallKey,
    resources: CaptureResources,
    draws: bool = False,
) -> Recording:
    """Record a call of ``compiled`` with ``inputs``, without executing it.

    Args:
        compiled: the compiled graph.
        plan: how the recording treats the inputs.
        inputs: the inputs of the call.
        key: the key of the call.
        resources: stream and memory pool to record with.
        draws: whether the graph may draw random numbers where a capture changes the generator for the whole process
            (``cuda.CAPTURES_GENERATOR``). Elsewhere it may in any case. Each replay draws new ones, and advances the
            program's generator.

    Raises:
        RuntimeError: if the call does something that cannot be recorded, such as synchronizing with the device. It has
            no effect then.
    """
    cache = None if plan.cache is None else weakref.ref(inputs[plan.cache])
    inputs = list(inputs)
    copies = []
    with torch.inference_mode(False), torch.no_grad():  # for calls in any mode
        for index in plan.copied:
            value = inputs[index]
            inputs[index] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            copies.append(_compact(inputs[index]).copy_(_compact(value)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(plan.device):
        resources.keep_pool(plan.device)
        with _capturing(graph, plan.device, resources, draws):
            results = compiled(*inputs)
    made, outputs = recorded_results(results, inputs, plan)
    return Recording(graph, plan, key, copies, made, outputs, cache)


@contextlib.contextmanager
def _capturing(
    graph: torch.cuda.CUDAGraph, device: torch.device, resources: CaptureResources, draws: bool
) -> Iterator[None]:
    """A context whose kernels are recorded to ``graph``.

    Unlike ``torch.cuda.graph`` it neither waits for the device nor empties the allocator's cache, after which the next
    prompt would have to allocate all its memory anew. Other threads may use the device meanwhile.
    """
    before = torch.cuda.current_stream()
    resources.stream.wait_stream(before)  # a capture resets the device's state of a generator, which replays may read
    # cuBLAS must not use a workspace from outside within the recording, nor one of the recording outside.
    cuda.forget_cublas_workspaces()
    aside = cuda.generator_aside(device) if cuda.CAPTURES_GENERATOR and not draws else contextlib.nullcontext()
    try:
        with torch.cuda.stream(resources.stream):
            with aside:
                graph.capture_begin(pool=resources.pool, capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                with contextlib.suppress(RuntimeError):  # that it was invalid; the error that made it so is raised
                    graph.capture_end()
                raise
            graph.capture_end()
        before.wait_stream(resources.stream)
    except BaseException:
        _end_failed_capture(device, resources, before, draws)
        raise
    finally:
        cuda.forget_cublas_workspaces()


def _end_failed_capture(
    device: torch.device, resources: CaptureResources, stream: torch.cuda.Stream, draws: bool
) -> None:
    """Restore torch's state, with ``stream`` as the current stream, after a recording that failed.

    If CUDA returns no graph, ``CUDAGraph.capture_end`` raises before it informs the allocator and the random generators
    that the capture has ended (torch 2.11). A successful capture of another graph informs the generators.
    """
    torch.cuda.set_stream(stream)
    with contextlib.suppress(RuntimeError):
        cuda.end_allocation_to_pool(device.index, resources.pool)
    if cuda.CAPTURES_GENERATOR and draws:
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=resources.stream):
            torch.zeros(1, device=device)
        torch.cuda.set_stream(stream)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` without repeated elements: dimensions of stride 0 have size 1."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
