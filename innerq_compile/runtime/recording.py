"""One recording: the CUDA graph of one call, replayed for all calls that have the same key."""

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
    """What calls have in common for which one recording serves.

    Attributes:
        sizes: values of the symbols, as ``RecordedInputs.sizes`` lists them.
        memory: where the caches are (``Caches.memory``).
        addresses: of the other tensors that stay where they are, None for all other inputs.
    """

    sizes: list[int]
    memory: list[int]
    addresses: list[int | None]


class CapturePlace:
    """Where a thread records the calls of a graph: a stream of its own, and memory that its recordings share.

    They can share it, because nothing that a recording leaves behind is read by another one.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()


@dataclasses.dataclass(eq=False)
class Recording:
    """One CUDA graph.

    Attributes:
        graph: what CUDA recorded.
        inputs: of the graph that was recorded.
        key: what later calls have to have in common with the one that was recorded.
        copies: what the inputs to copy are copied to.
        made: memory of results, of which a caller gets a copy.
        results: how a call gets each result.
    """

    graph: torch.cuda.CUDAGraph
    inputs: RecordedInputs
    key: CallKey
    copies: list[torch.Tensor]
    made: list[torch.Tensor]
    results: list[Result]

    def serves(self, inputs: list[Any], sizes: list[int], memory: list[int]) -> bool:
        """Whether it does what a call would do, whose :class:`CallKey` need not be made for that."""
        key = self.key
        return (
            sizes == key.sizes
            and memory == key.memory
            and cuda.same_addresses(inputs, key.addresses, self.inputs.fixed)
        )

    def replay(self, inputs: list[Any]) -> list[Any]:
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
    key: CallKey,
    place: CapturePlace,
) -> Recording:
    """Record a call of ``compiled`` with ``inputs``, which it does not run.

    Args:
        compiled: the compiled graph.
        plan: what is known of its inputs.
        inputs: of the call.
        key: of the call.
        place: where to record.

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
    """Bring torch back to ``stream`` from a recording that failed.

    Where CUDA does not give a graph, ``CUDAGraph.capture_end`` raises before it tells the allocator and the random
    generators that recording is over (torch 2.11), and ``torch.cuda.graph`` stays on its own stream. A recording that
    succeeds tells the generators.
    """
    torch.cuda.set_stream(stream)
    with contextlib.suppress(RuntimeError):
        cuda.end_allocation_to_pool(device.index, place.pool)
    with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=place.stream):
        torch.zeros(1, device=device)
    torch.cuda.set_stream(stream)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` without its repetitions, which memory has once."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
