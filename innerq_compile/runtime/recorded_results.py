"""The results of a replayed CUDA graph.

A result is an input of the call, a view of one, or a copy of memory that the next replay overwrites.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..kernels.internals.tensors import memory_of
from ..passes.analysis.recordable import RecordedInputs

#: Creates one result of a call from its inputs and from its copies of the memory that the graph writes results to.
Result = Callable[[list[Any], list[torch.Tensor]], Any]


def recorded_results(
    results: Sequence[Any], inputs: list[Any], plan: RecordedInputs
) -> tuple[list[torch.Tensor], list[Result]]:
    """Determine how each result of a recorded call is created for later calls.

    Args:
        results: The results of the recorded call.
        inputs: The inputs of the same call.
        plan: The inputs of the graph, and how they are used.

    Returns:
        The memory that the graph writes results to, and a function for each result.

    Raises:
        RuntimeError: If a result cannot be created for later calls.
    """
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
        else:  # results that share memory share it in their copies as well
            index, _ = made.setdefault(memory, (len(made), _whole(result)))
            found.append(_view_of_copy(index, result))
    return [memory for _, memory in made.values()], found


def _of_input(place: int) -> Result:
    return lambda inputs, made: inputs[place]


def _view_of_input(place: int, result: torch.Tensor, recorded: torch.Tensor, plan: RecordedInputs) -> Result:
    """The same view of an input of the call. If the input was copied and has other strides now, a copy of the view."""
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
    """Whether a clone has the same strides: the tensor is dense and has no overlapping elements."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage of a tensor, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
