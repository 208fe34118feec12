"""Properties of a mask, computed once for all layers: where it hides nothing, and that it shows only stored tokens."""

from __future__ import annotations

import torch

from . import layout
from .internals.tensors import assert_async

#: Where a mask adds a number as low as this, the token is hidden: its softmax weight is zero.
MASKED = -1e4

_HIDDEN_BEFORE = (
    "innerq: a mask shows tokens that were hidden from the whole prompt, and were therefore not stored; hide them here "
    "too, or show them to the prompt"
)


def open_from(mask: torch.Tensor, state: torch.Tensor, rows: int) -> torch.Tensor:
    """From which position on a mask is *open*: it hides no token from any row or head, and adds nothing.

    The causal part of the mask, among the query tokens, is not looked at. ``decode_attention`` need not read
    the mask of blocks behind that position. In a graph this is a few nodes, which Inductor fuses to one reduction.

    Args:
        mask: broadcasts to ``[B, Hq, N, S]``; boolean (True: seen) or added to the scores. Values at positions past
            the end of a sequence do not matter.
        state: the state of the key cache, ``[B, H, 4]``.
        rows: how many of the query tokens it counts already: all N, or 0 before they are appended.

    Returns:
        ``[B]`` int32: one more than the last position, up to that of the first query token, that is not open, else 0.

    Raises:
        RuntimeError: (on a GPU a device-side assertion) where the mask shows a position in front of the first stored
            token of its sequence.
    """
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    plain, shown = (mask, mask) if mask.dtype == torch.bool else (mask == 0, mask > MASKED)
    # all int64: a reduction in Inductor has one index type, and torch 2.11 does not narrow that of the columns
    column = torch.arange(mask.shape[-1], device=mask.device)
    first, length = layout.shift(state[:, :1]), state[:, :1, layout.LENGTH]  # [B, 1]
    lacking = (shown.any(1).any(1) & (column < first)).any(-1)
    assert_async(torch.logical_not(lacking.any()), _HIDDEN_BEFORE)
    closed = torch.logical_not(plain.all(1).all(1)) & (column <= first + length - rows)
    return torch.where(closed, column + 1, 0).amax(-1).to(torch.int32)
