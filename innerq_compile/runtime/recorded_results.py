"""The results of a replayed recording: inputs of the call, views of them, or copies of the recording's memory."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..kernels.internals.tensors import memory_of
from ..passes.analysis.recordable import RecordedInputs

#: Computes one result from the inputs of the call and its copies of the recording's result memory.
Result = Callable[[list[Any], list[torch.Tensor]], Any]


def recorded_results(
    results: Sequence[Any], inputs: list[Any], plan: RecordedInputs
) -> tuple[list[torch.Tensor], list[Result]]:
    """The memory of a recording that has to be copied after each replay, and how to compute each result.

    Args:
        results: the results of the recorded call.
        inputs: the inputs of the recorded call.
        plan: how the recording treats the inputs.

    Raises:
        RuntimeError: if a result cannot be reproduced for later calls.
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
        else:  # results that share memory are views of one copy
            index, _ = made.setdefault(memory, (len(made), _whole(result)))
            found.append(_view_of_copy(index, result))
    return [memory for _, memory in made.values()], found


def _of_input(place: int) -> Result:
    return lambda inputs, made: inputs[place]


def _view_of_input(place: int, result: torch.Tensor, recorded: torch.Tensor, plan: RecordedInputs) -> Result:
    """The corresponding view of a later call's input; a copy of the recorded view if that input has other strides."""
    if result.dtype != recorded.dtype:
        raise RuntimeError(f"a result is a view of an input of dtype {recorded.dtype} as dtype {result.dtype}")
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
    """Whether a clone has the same strides: the tensor has no gaps and no repeated elements."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage of a tensor, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
