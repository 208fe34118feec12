"""Writing tokens to a preallocated cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import UnsupportedOperation
from ..kernels import layout
from ..kernels.channels import with_zeros
from ..kernels.schemas import arguments_of
from .reading import as_dense

if TYPE_CHECKING:
    from .buffer import InnerQBuffer
    from .storage import CacheStorage


def write(tensor: InnerQBuffer, first: int, count: int, value: torch.Tensor) -> None:
    """Write ``count`` tokens from position ``first`` on. Tokens held after them are discarded.

    Args:
        tensor: The buffer, or a slice of one.
        first: Position in ``tensor`` of the first token.
        count: How many tokens are written.
        value: Their values, broadcast to ``[B, H, count, D]``.

    Raises:
        UnsupportedOperation: If that would leave a gap behind the tokens that are held.
    """
    storage = tensor._storage
    if count == 0:
        return
    value = torch.as_tensor(as_dense(value), device=tensor.device).expand(*tensor.shape[:2], count, tensor.shape[3])
    first += tensor._offset
    with storage.lock:
        held = _held(storage)
        if first > held:
            raise UnsupportedOperation(
                f"a write at token {first} would leave a gap in a quantized cache that holds {held} tokens: write "
                "tokens in order, or use a dense buffer"
            )
        position = torch.tensor([first], device=tensor.device)
        held = with_zeros(value.to(storage.dtype), storage.format)
        torch.ops.innerq.write_(*arguments_of("write_", storage.tensors, held, position))


def zero(tensor: InnerQBuffer) -> None:
    """Set a buffer, or a slice of one, to zero. Tokens held after it are discarded, as by :func:`write`.

    Positions that hold no token are zero. So tokens are written only if others are held after them.
    """
    storage = tensor._storage
    with storage.lock:
        if tensor._offset + tensor.shape[2] < _held(storage):
            write(tensor, 0, tensor.shape[2], tensor.new_zeros(()))
        else:
            torch.ops.innerq.truncate_(*arguments_of("truncate_", storage.tensors, tensor._offset))


def _held(storage: CacheStorage) -> int:
    """The number of tokens held by the shortest sequence, padding included. Synchronizes with the device."""
    return int(layout.ends(storage.tensors.state).min())
