"""Which dimensions operations such as transpose and permute reorder, and an index selects from."""

from __future__ import annotations

from typing import Any

import torch

from .operations import Kind
from .reading import Call


def order_of(call: Call, rank: int) -> tuple[int, ...] | None:
    """For a call of `Kind.REORDERS`, the dimension of the input that each dimension of the result is.

    Args:
        call: the call.
        rank: the number of dimensions of its input.

    Returns:
        The input's dimension for each dimension of the result; None if the order is not constant or does not fit
        ``rank``.
    """
    dims = list(range(rank))
    try:
        if call.name == "transpose":
            first, second = call["dim0"], call["dim1"]
            dims[first], dims[second] = dims[second], dims[first]
            return tuple(dims)
        if call.name == "reverse":
            return tuple(reversed(dims))
        if call.name == "permute":
            return tuple(dims[dim] for dim in call["dims"])
        if call.name == "movedim":
            numbered = torch.empty(dims, device="meta")  # dimension i has size i, so the shape shows the order
            return tuple(numbered.movedim(call["source"], call["destination"]).shape)
    except (IndexError, RuntimeError, TypeError):
        return None
    raise ValueError(f"{call.name} has no rule for its dimensions although it is of kind {Kind.REORDERS}")


def is_from_front(item: Any) -> bool:
    """Whether an entry of an index is a range that begins with the first element of its dimension."""
    return isinstance(item, slice) and item.start in (None, 0) and item.step in (None, 1)


def full_index(index: Any, rank: int) -> tuple[Any, ...]:
    """An index with an entry for each dimension of a tensor, where it has an ellipsis or ends early.

    Args:
        index: the index, of which None selects a new dimension.
        rank: the number of dimensions of the tensor.
    """
    entries = index if isinstance(index, tuple) else (index,)
    missing = rank - sum(entry is not None and entry is not Ellipsis for entry in entries)
    at = next((place for place, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    return (*entries[:at], *[slice(None)] * missing, *entries[at + 1 :])
