"""Interpretation of indices into cache tensors, along their tokens."""

from __future__ import annotations

import itertools
from typing import Any

import torch


def tokens_of(index, shape, tokens_dim: int) -> tuple[int, int] | None:
    """``(a, b)`` if ``index`` is a range of tokens, ``[:, :, a:b]`` or ``[:, a:b]`` in any spelling; else None."""
    item = _slice_of_tokens(index, tokens_dim)
    if item is None:
        return None
    start, end, step = item.indices(shape[tokens_dim])
    return (start, max(start, end)) if step == 1 else None


def last_tokens_of(index, tokens_dim: int) -> int | None:
    """``n`` if ``index`` takes the last tokens, ``[:, :, -n:]`` or ``[:, -n:]`` in any spelling; else None."""
    item = _slice_of_tokens(index, tokens_dim)
    if item is None or item.stop is not None or item.step not in (None, 1):
        return None
    return -item.start if isinstance(item.start, int) and item.start < 0 else None


def ranges_of(parts) -> list[tuple[int, int]]:
    """``(a, b)`` of each of the ``parts`` that a dimension was split into."""
    ends = list(itertools.accumulate(len(part) for part in parts))
    return list(zip([0, *ends], ends, strict=False))


def _slice_of_tokens(index, tokens_dim: int) -> slice | None:
    """The slice along the tokens, if ``index`` takes everything along all other dimensions; else None."""
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(item, slice) and item is not Ellipsis for item in index) or index.count(Ellipsis) > 1:
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (5 - len(index)), *index[at + 1 :])
    index = (*index, *[slice(None)] * (4 - len(index)))
    if len(index) != 4 or any(item != slice(None) for dim, item in enumerate(index) if dim != tokens_dim):
        return None
    return index[tokens_dim]


def token_range(index: Any, shape) -> tuple[int, int] | None:
    """``(a, b)`` if ``index`` is ``[:, :, a:b]``, else None."""
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(item, slice) for item in index) or len(index) > 4:
        return None
    bounds = [item.indices(size) for item, size in zip(index, shape, strict=False)]
    whole = all(bound == (0, size, 1) for d, (bound, size) in enumerate(zip(bounds, shape, strict=False)) if d != 2)
    if not whole or any(bound[2] != 1 for bound in bounds):
        return None
    start, end, _ = bounds[2] if len(bounds) > 2 else (0, shape[2], 1)
    return start, max(start, end)


def token_index(index: Any, shape) -> tuple[int, int] | None:
    """``(first, count)`` if ``index`` selects whole consecutive tokens ``[:, :, first : first + count]``, else None.

    Raises:
        IndexError: If it selects a token out of bounds.
    """
    window = token_range(index, shape)
    if window is not None:
        return window[0], window[1] - window[0]
    if not isinstance(index, tuple) or len(index) < 3 or not isinstance(index[2], torch.Tensor):
        return None
    if token_range((*index[:2], slice(None), *index[3:]), shape) is None:
        return None
    return consecutive(index[2], shape[2])


def consecutive(index: torch.Tensor, tokens: int, *, negative: bool = True) -> tuple[int, int] | None:
    """``(first, count)`` if an index tensor selects consecutive tokens, else None.

    Args:
        index: Positions ``[N]``, or a mask ``[tokens]`` of bool or uint8.
        tokens: Size of the dimension.
        negative: Whether negative positions count from the end; if not, they are out of bounds.

    Raises:
        IndexError: If a position is out of bounds.
    """
    if index.dim() != 1:
        return None
    if is_mask(index):
        if index.shape != (tokens,):
            return None
        index = index.nonzero().reshape(-1)
    places = index.tolist()
    if not places:
        return 0, 0
    for place in (min(places), max(places)):
        if not (-tokens if negative else 0) <= place < tokens:
            counted = "" if negative else ": positions are counted from its start"
            raise IndexError(f"index {place} is out of bounds for {tokens} tokens of a quantized buffer{counted}")
    places = [place % tokens for place in places]
    if places != list(range(places[0], places[0] + len(places))):
        return None
    return places[0], len(places)


def is_mask(index: torch.Tensor) -> bool:
    """Whether torch treats an index tensor as a mask: dtype bool, and by an older convention uint8."""
    return index.dtype in (torch.bool, torch.uint8)
