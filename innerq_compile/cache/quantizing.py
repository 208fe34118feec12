"""Quantization of dense keys or values into a storage: what ``passes/quantize_prefill.py`` does in a graph, eagerly."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch

from ..kernels import formats, layout, reference
from ..kernels import ops as _ops  # noqa: F401  (defines the innerq:: operators)
from ..kernels.cache import CacheTensors
from ..kernels.channels import with_zeros
from ..kernels.formats import CacheFormat, Role
from .storage import CacheStorage


class Config(Protocol):
    """The part of ``innerq_compile.InnerQConfig`` that is used here."""

    @property
    def centre_keys(self) -> bool: ...

    @property
    def normalize_keys(self) -> bool: ...

    def format_for(self, role: Role, head_dim: int, dtype: torch.dtype) -> CacheFormat: ...


def quantize(
    x: torch.Tensor,
    config: Config,
    role: Role,
    start: torch.Tensor | None = None,
    capacity: int | None = None,
    norm: str | None = None,
    queries: torch.Tensor | None = None,
    fmt: CacheFormat | None = None,
    centre: bool | None = None,
) -> CacheStorage:
    """Quantize dense keys or values.

    Args:
        x: ``[B, H, S, D]``, float16, bfloat16, float32 or float64.
        config: Determines the format, and which key statistics are computed.
        role: ``"key"`` or ``"value"``.
        start: ``[B]`` integers, the number of padding tokens before each sequence; None means none.
        capacity: Capacity in blocks; None leaves room for growth, see ``formats.grown_capacity``.
        norm: ``CacheFormat.norm``; None means that of the config.
        queries: ``[B, Hq, N, D]``, the queries of the last N tokens, for mode ``steered``; None if they are not known.
        fmt: The format; None means that of the config.
        centre: Whether the mean is taken out of keys; None means as the config says.

    Raises:
        InnerQError: If a cache cannot have this dtype or head_dim.
    """
    if fmt is None:
        fmt = config.format_for(role, x.shape[-1], x.dtype)
    if norm is not None:
        fmt = dataclasses.replace(fmt, norm=norm)
    x = with_zeros(x, fmt)
    queries = None if queries is None else with_zeros(queries, fmt)
    start = x.new_zeros(x.shape[0], dtype=torch.int32) if start is None else start.to(torch.int32)
    centred = config.centre_keys if centre is None else centre
    has_statistics = role == "key" and not fmt.rolls and (centred or config.normalize_keys)
    mean = scale = moments = divisor = profile = None
    if fmt.uses_queries:
        moments = reference.query_moments(queries, x, start)
        divisor = None if queries is None else reference.norm_divisor(moments, fmt.norm)
    if has_statistics and x.shape[2] == 0:
        mean = x.new_zeros((*x.shape[:2], x.shape[3]), dtype=torch.float32)
        scale = torch.ones_like(mean)
    elif has_statistics:
        mean, scale = torch.ops.innerq.key_statistics(x, start, centred, config.normalize_keys, fmt.norm, divisor)
    mean, scale = (mean if centred else None), (scale if config.normalize_keys else None)
    if moments is not None:
        profile = reference.query_profile(moments, scale, fmt.group_size)
    if capacity is None:
        capacity = formats.grown_capacity(fmt, x.shape[2])
    encoded = torch.ops.innerq.prefill(x, start, mean, scale, capacity, fmt.spec, profile)
    tensors = CacheTensors.of_encoded(fmt, encoded)
    tensors = dataclasses.replace(tensors, query_profile=profile, mean=mean, norm=scale)
    return CacheStorage(tensors, x.shape[2])


def storage_bytes(
    fmt: CacheFormat, batch: int, heads: int, head_dim: int, dtype: torch.dtype, capacity: int, config: Config
) -> int:
    """Bytes of one cache side, key statistics included: the value of ``CacheStorage.nbytes``.

    Args:
        fmt: The cache format.
        batch: Number of sequences.
        heads: Number of KV heads.
        head_dim: Elements of a key or value.
        dtype: The dtype of the cache tensor.
        capacity: Capacity in blocks.
        config: Says which key statistics there are.
    """
    statistics = (config.centre_keys + config.normalize_keys) if fmt.is_key else 0
    return layout.cache_bytes(fmt, batch, heads, head_dim + fmt.zeros, dtype, capacity, statistics=statistics)
