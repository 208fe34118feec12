"""What is measured on a prompt: mean and normalization of its keys, moments and profile of its queries."""

from __future__ import annotations

import torch

from ..formats import CacheFormat
from ..pairs import Pairs
from .numbers import as_float

#: Largest mean, and squared deviation, in a query profile: signed bytes.
MAX_PROFILE = 123
#: Fewer real tokens than this give no key statistics: mean 0 and normalization 1 are used instead.
MIN_STATISTICS_TOKENS = 32
#: So many of a prompt's last queries say what queries are like; to read all of a long prompt's would cost more.
MOST_QUERIES = 2048
#: Least root mean square of the queries of a channel that counts, as a part of the largest of its head.
LEAST_QUERY = 2.0**-12
#: Queries count as no larger than this, so that sums of their squares are finite.
MAX_QUERY = 1e15
#: Range of the key normalization, which is relative to the largest channel of its head.
MIN_KEY_NORM = 2.0**-6
#: A key that is divided but not centred yet, as on its way through a rotary embedding, gets no larger than this or than
#: the largest key of its head: far enough from what float16 holds.
MAX_DIVIDED_KEY = 8192.0


def query_moments(query: torch.Tensor | None, keys: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of the queries of a prompt that meet each head of keys, ``[B, H, 2, D]`` float32.

    Taken over the last :data:`MOST_QUERIES` real queries of all query heads of a key head; numbers that are not finite
    count as zero. Queries of fewer than :data:`MIN_STATISTICS_TOKENS` real tokens give 0 and 1, as if all channels were
    alike.

    Args:
        query: ``[B, Hq, N, D]``, as it is multiplied with the keys; the last ``N`` tokens of the prompt. None, where
            it is not known, gives :func:`default_moments`.
        keys: ``[B, H, S, D]``.
        start: ``[B]``, tokens of padding in front.
    """
    heads, tokens = keys.shape[1:3]
    if query is None:
        return default_moments(keys.shape[0], heads, keys.shape[3], keys.device)
    # an index and not a slice: of that the strides tell long from short prompts, and a graph would serve one of them
    last = torch.arange(torch.sym_max(query.shape[2] - MOST_QUERIES, 0), query.shape[2], device=query.device)
    query = query.index_select(2, last)
    batch, q_heads, rows, head_dim = query.shape
    position = torch.arange(rows, device=query.device) + (tokens - rows)
    real = position >= start[:, None]
    x = query.float()
    x = torch.where(real[:, None, :, None] & x.isfinite(), x, 0.0).clamp(-MAX_QUERY, MAX_QUERY)
    # a number that is not finite counts as zero: a count for each channel would cost as much as the sums
    group, rows = q_heads // heads, real.sum(-1)[:, None, None]
    count = (rows * group).clamp(min=1)
    total, squares = (each.sum(2).view(batch, heads, group, head_dim).sum(2) for each in (x, x.square()))
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    known = rows >= MIN_STATISTICS_TOKENS
    # no constant tensor: a graph would copy it to the device, and wait for it, at every call
    return torch.stack((torch.where(known, mean, 0.0), torch.where(known, deviation, 1.0)), 2)


def default_moments(batch: int, heads: int, head_dim: int, device: torch.device | str) -> torch.Tensor:
    """Query moments ``[B, H, 2, D]`` of a prompt whose queries are not known: 0 and 1, all channels are alike."""
    zeros = torch.zeros((batch, heads, head_dim), dtype=torch.float32, device=device)
    return torch.stack((zeros, torch.ones_like(zeros)), 2)


def norm_divisor(moments: torch.Tensor, norm: str) -> torch.Tensor:
    """By what the normalization of keys is divided: the fourth root of the size of the queries.

    ``moments [B, H, 2, D]`` are those of :func:`query_moments`; returns ``[B, H, D]`` float32. The size of a channel
    is the root mean square of its queries, over the channels that share a normalization (``CacheFormat.norm``),
    relative to the largest of the head.
    """
    square = moments.square().sum(2)
    square = (square + Pairs.parse(norm).swapped(square)) * 0.5
    largest = square.amax(-1, keepdim=True)
    relative = square / largest.clamp(min=torch.finfo(torch.float32).tiny)
    divisor = relative.clamp(min=LEAST_QUERY**2).sqrt().sqrt().sqrt()
    return torch.where(largest > 0, divisor, 1.0)


def query_profile(moments: torch.Tensor, norm: torch.Tensor | None, group_size: int) -> torch.Tensor:
    """The query profile: what a cache keeps of the query moments, two bytes a channel.

    Mean and square of the deviation of the queries as held keys meet them (times the normalization), in units of their
    own for each group, in which neither is above :data:`MAX_PROFILE`. Only ratios within a group count.

    Args:
        moments: ``[B, H, 2, D]`` float32 of :func:`query_moments`.
        norm: ``[B, H, D]`` or None.
        group_size: channels that share a scale.

    Returns:
        ``[B, H, 2, D]`` int8.
    """
    held = torch.nan_to_num(moments if norm is None else moments * norm.unsqueeze(2))
    mean, deviation = held.unflatten(-1, (-1, group_size)).unbind(2)
    least = 1e-30  # so that what is divided by it is finite
    unit = torch.minimum(
        MAX_PROFILE / mean.abs().amax(-1, keepdim=True).clamp(min=least),
        MAX_PROFILE**0.5 / deviation.abs().amax(-1, keepdim=True).clamp(min=least),
    )
    means = torch.round(mean * unit).clamp(-MAX_PROFILE, MAX_PROFILE)
    weights = torch.round((deviation * unit).square()).clamp(max=MAX_PROFILE)
    return torch.stack((means, weights), 2).flatten(-2).to(torch.int8)


def default_profile(fmt: CacheFormat, like: torch.Tensor, norm: torch.Tensor | None = None) -> torch.Tensor | None:
    """The query profile of a cache whose queries are not known; None in modes without one.

    Args:
        fmt: the format.
        like: any ``[B, H, ..., D]`` on the cache's device.
        norm: ``[B, H, D]`` or None.
    """
    if not fmt.uses_queries:
        return None
    moments = default_moments(like.shape[0], like.shape[1], like.shape[-1], like.device)
    return query_profile(moments, norm, fmt.group_size)


def key_statistics(
    keys: torch.Tensor,
    start: torch.Tensor,
    *,
    centre: bool,
    normalize: bool,
    norm: str = "channel",
    divisor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and normalization of the keys of a prompt, each ``[B, H, D]`` float32.

    Taken over the real, finite keys (positions from ``start[b]`` on). The normalization is ``sqrt(max|k - mean|)`` over
    tokens and over the channels that share it, divided by ``divisor`` where the query moments are known, and
    relative to the largest channel of the head so that neither the scaled query nor the divided key can overflow.
    Prompts of fewer than :data:`MIN_STATISTICS_TOKENS` real tokens give 0 and 1.

    Args:
        keys: ``[B, H, S, D]``.
        start: ``[B]``, tokens of padding in front.
        centre, normalize: whether to take the mean, the normalization; where not, they are 0 and 1.
        norm: ``CacheFormat.norm``. ``paper`` gives ``sqrt(max|k - mean|)`` as it is, and 1 where that is 0.
        divisor: ``[B, H, D]`` of :func:`norm_divisor`, or None. ``paper`` takes no notice of it.

    Source: InnerQ, arXiv 2602.23200, key normalization; centring, sharing and queries: ``docs/method.md``.
    """
    tokens = keys.shape[-2]
    positions = torch.arange(tokens, device=keys.device)
    real = (positions >= start[:, None])[:, None, :, None]
    x = keys.float()
    valid = real & x.isfinite()
    count = valid.sum(-2).clamp(min=1)
    enough = (tokens - start >= MIN_STATISTICS_TOKENS)[:, None, None]
    mean = torch.where(valid, x, 0.0).div(count.unsqueeze(-2)).sum(-2)
    mean = mean if centre else torch.zeros_like(mean)
    mean = torch.where(enough, mean, 0.0)
    if not normalize:
        return mean, torch.ones_like(mean)
    largest = torch.where(valid, x - mean.unsqueeze(-2), 0.0).abs().amax(-2)
    if norm == "paper":
        return mean, torch.where(enough & (largest > 0), largest.sqrt(), 1.0)
    uncentred = torch.where(valid, x, 0.0).abs().amax(-2)
    partners = list(Pairs.parse(norm).partners(keys.shape[-1]))
    largest, shared = (torch.maximum(each, each[..., partners]) for each in (largest, uncentred))
    relative = largest / largest.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    least = shared / shared.amax(-1, keepdim=True).clamp(min=MAX_DIVIDED_KEY)
    relative = relative.sqrt()
    if divisor is not None:
        relative = relative / divisor
        relative = relative / relative.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    found = torch.maximum(relative, least).clamp(min=MIN_KEY_NORM)
    return mean, torch.where(enough, found, 1.0)


def normalize_keys(keys: torch.Tensor, mean: torch.Tensor | None, norm: torch.Tensor | None) -> torch.Tensor:
    """Keys as a cache holds them, ``(k - mean) * (1 / norm)``, in the dtype they came in."""
    if mean is None and norm is None:
        return keys
    x = as_float(keys)
    if mean is not None:
        x = x - mean.to(x.dtype).unsqueeze(-2)
    if norm is not None:
        x = x * norm.to(x.dtype).reciprocal().unsqueeze(-2)
    return x.to(keys.dtype)
