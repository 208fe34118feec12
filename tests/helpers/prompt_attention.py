"""Attention of a prompt by its definition."""

from __future__ import annotations

import torch


def by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shown: torch.Tensor | None,
    window: int | None,
    sinks: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output in float64, and which rows ``[B, 1, S]`` see anything; a head at a time, whose scores fit on a GPU."""
    length, groups = key.shape[2], query.shape[1] // key.shape[1]
    seen = torch.ones(query.shape[0], length, length, dtype=torch.bool, device=query.device).tril()
    if shown is not None:
        seen = seen & shown[:, None]
    if window is not None:
        seen = seen.triu(1 - window)
    heads = []
    for head in range(query.shape[1]):
        keys, values = (side[:, head // groups].double() for side in (key, value))
        scores = (query[:, head].double() @ keys.mT * scale).masked_fill(~seen, -torch.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks[head].double().expand(*scores.shape[:2], 1)), -1)
        heads.append(scores.softmax(-1)[..., :length] @ values)
    rows = seen.any(-1) if sinks is None else torch.ones_like(seen[..., 0])
    return torch.stack(heads, 1), rows[:, None]
