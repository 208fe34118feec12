"""Statistics of a prompt: mean and normalization of its keys, moments and profile of its queries."""

from __future__ import annotations

import enum

import torch

from ..formats import CacheFormat
from ..pairs import Pairs
from .numbers import as_float

#: Largest magnitude of a mean, and largest squared deviation, in a query profile (signed bytes).
MAX_PROFILE = 123
#: With fewer real tokens than this nothing is measured; key mean is 0 and normalization 1.
MIN_STATISTICS_TOKENS = 32
#: Query moments are measured on at most so many of a prompt's last queries, which bounds their cost.
MOST_QUERIES = 2048
#: Lower limit of the root mean square of the queries of a channel, relative to the largest channel of its head.
LEAST_QUERY = 2.0**-12
#: Queries are clamped to this magnitude, so that sums of their squares are finite.
MAX_QUERY = 1e15
#: Lower limit of the key normalization, relative to the largest channel of its head.
MIN_KEY_NORM = 2.0**-6
#: A key that is divided by the normalization but not centred yet (before a rotary embedding) is at most this large, or
#: as large as the largest key of its head: within the range of float16.
MAX_DIVIDED_KEY = 8192.0


def query_moments(query: torch.Tensor | None, keys: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of a prompt's queries for each key head, ``[B, H, 2, D]`` float32.

    Measured on the last :data:`MOST_QUERIES` real queries of all query heads of a key head; numbers that are not finite
    count as zero. With fewer than :data:`MIN_STATISTICS_TOKENS` real queries the result is 0 and 1, which weighs all
    channels equally.

    Args:
        query: ``[B, Hq, N, D]``, as it is multiplied with the keys; the last ``N`` tokens of the prompt. None, if it is
            not known, gives :func:`default_moments`.
        keys: ``[B, H, S, D]``.
        start: ``[B]``, number of padding tokens at the beginning.
    """
    heads, tokens = keys.shape[1:3]
    if query is None:
        return default_moments(keys.shape[0], heads, keys.shape[3], keys.device)
    batch, q_heads, count, head_dim = query.shape
    query, row = last_queries(query, _reading(query))
    real = (row + (tokens - count) >= start[:, None]) & (row >= count - MOST_QUERIES) & (row >= 0)
    x = query.float()
    x = torch.where(real[:, None, :, None] & x.isfinite(), x, 0.0).clamp(-MAX_QUERY, MAX_QUERY)
    # numbers that are not finite count as zero: counting them per channel would cost as much as the sums
    group, known = q_heads // heads, real.sum(-1)[:, None, None]
    numbers = (known * group).clamp(min=1)
    # Inductor compiles sums of at most 4,096 float32 on a CPU, and of more, separately: its guard would compile twice.
    dtype = torch.float64 if x.device.type == "cpu" else torch.float32
    sums = (each.sum(2, dtype=dtype).float() for each in (x, x.square()))
    total, squares = (each.view(batch, heads, group, head_dim).sum(2) for each in sums)
    mean = total / numbers
    deviation = (squares / numbers - mean.square()).clamp(min=0).sqrt()
    enough = known >= MIN_STATISTICS_TOKENS
    # no constant tensors: a graph would copy them to the device, and wait for that, at every call
    return torch.stack((torch.where(enough, mean, 0.0), torch.where(enough, deviation, 1.0)), 2)


class Reading(enum.Enum):
    """Which queries are read, of which those count that are among the last :data:`MOST_QUERIES`."""

    LAST = "the last ones"
    CONSTANT_NUMBER = "as many, with some that do not exist in a short prompt"
    ALL = "all"


def _reading(query: torch.Tensor) -> Reading:
    """How to read queries so that prompts of all lengths are compiled as one.

    Of a symbolic number of queries the last ones are a minimum. Guards, and caches of compiled code, decide such sizes
    one way or the other. A CPU would take long for rows that do not exist, and a GPU for a sum over a symbolic number.
    """
    if isinstance(query.shape[2], int):
        return Reading.LAST
    return Reading.ALL if query.device.type == "cpu" else Reading.CONSTANT_NUMBER


def last_queries(query: torch.Tensor, reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
    """The queries that are read, ``[B, Hq, R, D]``, and their places ``[R]`` among all; those below 0 do not exist."""
    row = torch.arange(query.shape[2], device=query.device)
    if reading is Reading.LAST:
        return query[:, :, -MOST_QUERIES:], row[-MOST_QUERIES:]
    if reading is Reading.ALL:
        return query, row
    row = torch.arange(MOST_QUERIES, device=query.device) + (query.shape[2] - MOST_QUERIES)
    return query.index_select(2, row.clamp(min=0)), row


def default_moments(batch: int, heads: int, head_dim: int, device: torch.device | str) -> torch.Tensor:
    """Query moments ``[B, H, 2, D]`` where queries are not known: mean 0 and deviation 1, for all channels."""
    zeros = torch.zeros((batch, heads, head_dim), dtype=torch.float32, device=device)
    return torch.stack((zeros, torch.ones_like(zeros)), 2)


def norm_divisor(moments: torch.Tensor, norm: str) -> torch.Tensor:
    """The factor by which the normalization of keys is divided: the fourth root of the size of the queries.

    The size is the root mean square of the queries of a channel, averaged over the channels that share a normalization
    (``CacheFormat.norm``), relative to the largest channel of the head.

    Args:
        moments: ``[B, H, 2, D]`` of :func:`query_moments`.
        norm: ``CacheFormat.norm``.

    Returns:
        ``[B, H, D]`` float32.
    """
    square = moments.square().sum(2)
    square = (square + Pairs.parse(norm).swapped(square)) * 0.5
    largest = square.amax(-1, keepdim=True)
    relative = square / largest.clamp(min=torch.finfo(torch.float32).tiny)
    divisor = relative.clamp(min=LEAST_QUERY**2).sqrt().sqrt().sqrt()
    return torch.where(largest > 0, divisor, 1.0)


def query_profile(moments: torch.Tensor, norm: torch.Tensor | None, group_size: int) -> torch.Tensor:
    """The query profile: the query moments in the coded form that a cache keeps, two bytes per channel.

    Mean and squared deviation of the queries, multiplied by the normalization as the queries of a decode step are. Each
    group is scaled so that neither is above :data:`MAX_PROFILE`; only ratios within a group matter.

    Args:
        moments: ``[B, H, 2, D]`` float32 of :func:`query_moments`.
        norm: ``[B, H, D]`` or None.
        group_size: channels that share a scale.

    Returns:
        ``[B, H, 2, D]`` int8.
    """
    held = torch.nan_to_num(moments if norm is None else moments * norm.unsqueeze(2))
    mean, deviation = held.unflatten(-1, (-1, group_size)).unbind(2)
    least = 1e-30  # so that quotients are finite
    unit = torch.minimum(
        MAX_PROFILE / mean.abs().amax(-1, keepdim=True).clamp(min=least),
        MAX_PROFILE**0.5 / deviation.abs().amax(-1, keepdim=True).clamp(min=least),
    )
    means = torch.round(mean * unit).clamp(-MAX_PROFILE, MAX_PROFILE)
    weights = torch.round((deviation * unit).square()).clamp(max=MAX_PROFILE)
    return torch.stack((means, weights), 2).flatten(-2).to(torch.int8)


def default_profile(fmt: CacheFormat, like: torch.Tensor, norm: torch.Tensor | None = None) -> torch.Tensor | None:
    """The query profile of a cache where queries are not known; None in modes without one.

    Args:
        fmt: the format.
        like: a tensor ``[B, H, ..., D]`` on the cache's device.
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

    Computed over real, finite keys (positions from ``start[b]`` on). The normalization is ``sqrt(max|k - mean|)`` over
    tokens and over the channels that share it, divided by ``divisor`` if the query moments are known, and relative to
    the largest channel of the head, so that neither the scaled query nor the divided key overflows. Prompts of fewer
    than :data:`MIN_STATISTICS_TOKENS` real tokens give 0 and 1.

    Args:
        keys: ``[B, H, S, D]``.
        start: ``[B]``, number of padding tokens at the beginning.
        centre, normalize: whether to compute the mean and the normalization; if not, they are 0 and 1.
        norm: ``CacheFormat.norm``. With ``paper`` the normalization is ``sqrt(max|k - mean|)``, and 1 where that is 0.
        divisor: ``[B, H, D]`` of :func:`norm_divisor`, or None. Ignored with ``paper``.

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
    """Keys as a cache holds them, ``(k - mean) * (1 / norm)``, in their dtype. ``mean`` and ``norm`` may be None."""
    if mean is None and norm is None:
        return keys
    x = as_float(keys)
    if mean is not None:
        x = x - mean.to(x.dtype).unsqueeze(-2)
    if norm is not None:
        x = x * norm.to(x.dtype).reciprocal().unsqueeze(-2)
    return x.to(keys.dtype)
