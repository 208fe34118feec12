"""The order in which operations put dimensions."""

from __future__ import annotations

import torch

from .operations import Kind
from .reading import Call


def order_of(call: Call, rank: int) -> tuple[int, ...] | None:
    """For each dimension of the result of a call that reorders them (`Kind.REORDERS`), which of its operand's it is.

    None where the order is not a constant, or none of ``rank`` dimensions.
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
            numbered = torch.empty(dims, device="meta")  # torch knows where the others go
            return tuple(numbered.movedim(call["source"], call["destination"]).shape)
    except (IndexError, RuntimeError, TypeError):
        return None
    raise ValueError(f"{call.name} has no rule for its dimensions although it is of kind {Kind.REORDERS}")
