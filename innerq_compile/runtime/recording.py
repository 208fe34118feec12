"""One recording: the CUDA graph of a call, which is replayed for all calls with the same key."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..kernels.internals import cuda
from ..passes.analysis.recordable import RecordedInputs
from .recorded_results import Result, recorded_results


class CallKey(NamedTuple):
    """What calls must have in common to share a recording.

    Attributes:
        sizes: The values of the symbols, in the order of ``RecordedInputs.sizes``.
        memory: The addresses and capacities of the caches (``Caches.memory``).
        addresses: The addresses of the other inputs that the graph reads in place; None for inputs that are copied.
    """

    sizes: list[int]
    memory: list[int]
    addresses: list[int | None]


class CapturePlace:
    """The stream on which a thread records the calls of a graph, and the memory pool of its recordings.

    They can share a pool, because no recording reads what another one has left in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()


@dataclasses.dataclass(eq=False)
class Recording:
    """One CUDA graph.

    Attributes:
        graph: The CUDA graph.
        inputs: The inputs of the compiled graph, and how they are used.
        key: The key of the recorded call.
        copies: The tensors that inputs are copied to.
        made: The memory that the graph writes results to. A caller gets copies.
        results: For each result, a function that creates it.
    """

    graph: torch.cuda.CUDAGraph
    inputs: RecordedInputs
    key: CallKey
    copies: list[torch.Tensor]
    made: list[torch.Tensor]
    results: list[Result]

    def serves(self, inputs: list[Any], sizes: list[int], memory: list[int]) -> bool:
        """Whether it can be replayed for a call, given the parts of its :class:`CallKey`."""
        key = self.key
        return (
            sizes == key.sizes
            and memory == key.memory
            and cuda.same_addresses(inputs, key.addresses, self.inputs.fixed)
        )

    def replay(self, inputs: list[Any]) -> list[Any]:
        """Replay the CUDA graph for a call with ``inputs``. Returns the results."""
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
    place: CapturePlace,
) -> Recording:
    """Record a call of ``compiled`` as a CUDA graph, without running it.

    Args:
        compiled: The compiled graph.
        plan: Its inputs, and how they are used.
        inputs: The inputs of the call.
        key: The key of the call.
        place: The stream and the memory pool of the recording.

    Raises:
        RuntimeError: If the call cannot be recorded, for example because it synchronizes with the device.
    """
    inputs = list(inputs)
    copies = []
    with torch.inference_mode(False), torch.no_grad():  # so that calls in any mode can use it
        for index in plan.copied:
            value = inputs[index]
            inputs[index] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            copies.append(_compact(inputs[index]).copy_(_compact(value)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(plan.device):
        before = torch.cuda.current_stream()
        # cuBLAS caches its workspaces. One from outside must not be used in the recording, nor the other way round.
        cuda.forget_cublas_workspaces()
        try:
            with torch.cuda.graph(graph, pool=place.pool, stream=place.stream, capture_error_mode="thread_local"):
                results = compiled(*inputs)
        except BaseException:
            _end_failed_capture(plan.device, place, before)
            raise
        finally:
            cuda.forget_cublas_workspaces()
    made, outputs = recorded_results(results, inputs, plan)
    return Recording(graph, plan, key, copies, made, outputs)


def _end_failed_capture(device: torch.device, place: CapturePlace, stream: torch.cuda.Stream) -> None:
    """Reset torch to ``stream`` after a recording failed.

    If CUDA returns no graph, ``CUDAGraph.capture_end`` raises before it notifies the allocator and the random
    generators of the end of the recording (torch 2.11), and ``torch.cuda.graph`` stays on its own stream. An empty
    recording, which succeeds, notifies the generators.
    """
    torch.cuda.set_stream(stream)
    with contextlib.suppress(RuntimeError):
        cuda.end_allocation_to_pool(device.index, place.pool)
    with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=place.stream):
        torch.zeros(1, device=device)
    torch.cuda.set_stream(stream)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` without the repetitions of expanded dimensions, which are in memory once."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
