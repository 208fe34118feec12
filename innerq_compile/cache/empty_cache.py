"""Preallocated caches that are quantized: :func:`empty_cache` in place of ``torch.zeros``."""

from __future__ import annotations

import dataclasses

import torch

from ..config import InnerQConfig
from ..errors import InnerQError
from ..kernels import reference
from ..kernels.formats import Role, preallocated_capacity
from .buffer import InnerQBuffer
from .checks import check_role
from .storage import CacheStorage


def empty_cache(
    batch: int,
    heads: int,
    max_tokens: int,
    head_dim: int,
    *,
    role: Role,
    config: InnerQConfig | str = "base",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> InnerQBuffer:
    """Create an empty preallocated quantized cache, in place of ``torch.zeros(batch, heads, max_tokens, head_dim)``.

    Args:
        batch: Number of sequences.
        heads: Number of KV heads.
        max_tokens: Number of tokens that there is room for.
        head_dim: Elements of a key or value, 1 to 576.
        role: ``"key"`` or ``"value"``.
        config: A config or the name of a preset.
        dtype: The dtype that it has for the program: float16, bfloat16, float32 or float64.
        device: The device of the inner tensors; torch's default device if None.

    Returns:
        A buffer ``[batch, heads, max_tokens, head_dim]`` that reads as zero.

    Raises:
        InnerQError: If a cache cannot have this size, dtype or format.

    Example:
        >>> keys = empty_cache(1, 8, 4096, 128, role="key", dtype=torch.bfloat16, device="cuda")
        >>> keys[:, :, :100] = prompt_keys
    """
    check_role(role)
    for name, size in (("batch", batch), ("heads", heads), ("max_tokens", max_tokens)):
        if not isinstance(size, int) or size < 1:
            raise InnerQError(f"{name}={size!r} is not allowed: it has to be a whole number, 1 or more")
    config = InnerQConfig.preset(config) if isinstance(config, str) else config
    fmt = config.format_for(role, head_dim, dtype)
    device = torch.empty((), device=device).device
    capacity = preallocated_capacity(fmt, max_tokens)
    held = head_dim + fmt.zeros
    tensors = reference.empty_cache(fmt, batch, heads, held, capacity, dtype, device)
    mean = norm = None
    if role == "key":
        zeros = torch.zeros((batch, heads, held), dtype=torch.float32, device=device)
        mean = zeros if config.centre_keys else None
        norm = torch.ones_like(zeros) if config.normalize_keys else None
    storage = CacheStorage(dataclasses.replace(tensors, mean=mean, norm=norm), max_tokens)
    return InnerQBuffer(storage, max_tokens)
