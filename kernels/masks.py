"""What a mask says about a cache: from where on it hides nothing, and that it shows nothing that the cache lacks."""

from __future__ import annotations

import torch

from . import layout
from .internals.tensors import assert_async

#: A number this low in place of a score, or added to one, is a mask: no weight is left of it.
MASKED = -1e4

_HIDDEN_BEFORE = (
    "innerq: a mask shows tokens that were hidden from the whole prompt, and were therefore not stored; hide them here "
    "too, or show them to the prompt"
)


def open_from(mask: torch.Tensor, state: torch.Tensor, rows: int) -> torch.Tensor:
    """From which position on a mask is *open*: hides no token from any row or head, and adds nothing.

    The causal part of a mask, among the last ``rows`` tokens, does not count. What is computed here once for all
    layers lets each of them leave the mask of most of its tokens unread (``decode_attention``). In a graph it is a
    few nodes that Inductor makes one reduction of.

    Args:
        mask: broadcasts to ``[B, Hq, N, S]``; boolean (True: seen) or added to the scores. Positions behind the end of
            a sequence may hold anything.
        state: the state of the key cache, ``[B, H, 4]``, with the ``rows`` newest tokens.
        rows: query tokens, N.

    Returns:
        ``[B]`` int32: one more than the last position before ``start + length - rows + 1`` that is not open, else 0.

    Raises:
        RuntimeError: (on a GPU a device-side assertion) where the mask shows a position in front of the first stored
            token of its sequence.
    """
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    plain, shown = (mask, mask) if mask.dtype == torch.bool else (mask == 0, mask > MASKED)
    # int64 throughout: where Inductor counts columns so, torch 2.11 does not narrow them, and a reduction has one type
    column = torch.arange(mask.shape[-1], device=mask.device)
    start, length = state[:, 0, layout.START, None], state[:, 0, layout.LENGTH, None]
    lacking = (shown.any(1).any(1) & (column < start)).any(-1)
    assert_async(torch.logical_not(lacking.any()), _HIDDEN_BEFORE)
    closed = torch.logical_not(plain.all(1).all(1)) & (column <= start + length - rows)
    return torch.where(closed, column + 1, 0).amax(-1).to(torch.int32)
