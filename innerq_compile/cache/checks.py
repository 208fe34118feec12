"""Checks of what users pass to make a cache. Errors name the value, what is allowed and a way out."""

from __future__ import annotations

import torch

from ..errors import InnerQError
from ..kernels.formats import Role
from ..kernels.pairs import Pairs


def check_role(role: str) -> None:
    """Raise InnerQError for anything but ``"key"`` and ``"value"``."""
    if role not in ("key", "value"):
        raise InnerQError(f"role={role!r} is not allowed: it has to be 'key' or 'value'")


def check_layout(dense: torch.Tensor, tokens_dim: int) -> None:
    """Raise InnerQError where ``dense`` is not ``[B, H, S, D]``, or ``[B, S, H, D]`` with ``tokens_dim=1``."""
    if tokens_dim not in (1, 2):
        raise InnerQError(
            f"tokens_dim={tokens_dim!r} is not allowed: it has to be 2 for a cache [B, H, S, D], or 1 for "
            "[B, S, H, D]; permute other layouts"
        )
    if dense.dim() != 4:
        raise InnerQError(
            f"a cache has the shape [B, H, S, D], or [B, S, H, D] with tokens_dim=1; got {tuple(dense.shape)}"
        )


def check_start(start: torch.Tensor, dense: torch.Tensor) -> None:
    """Raise InnerQError where ``start`` is not ``[B]`` integers, each at most the tokens of ``dense [B, H, S, D]``."""
    batch, tokens = dense.shape[0], dense.shape[2]
    whole = isinstance(start, torch.Tensor) and not start.is_floating_point() and start.shape == (batch,)
    if not whole or (batch and not 0 <= int(start.min()) <= int(start.max()) <= tokens):
        raise InnerQError(
            f"start={start!r} is not allowed: it has to be an integer tensor of shape [{batch}] with the number of "
            f"padding tokens of each sequence, 0 to {tokens}; leave it out where there is no padding"
        )


def check_norm(norm: str, role: Role, head_dim: int) -> None:
    """Raise InnerQError where ``norm`` is not a key normalization (``CacheFormat.norm``) for this ``head_dim``."""
    try:
        pairs = Pairs.parse(norm)
        if role == "key" and pairs.first + pairs.count <= head_dim:
            return
    except (TypeError, ValueError):
        pass
    raise InnerQError(
        f"norm={norm!r} is not allowed for {role}s of head_dim {head_dim}: keys take channel, paper, half<n> or "
        "interleaved<n> with an even n up to head_dim; leave it out to have each channel by itself"
    )


def check_queries(queries: torch.Tensor, role: Role, keys: torch.Tensor) -> None:
    """Raise InnerQError where ``queries`` are not ``[B, Hq, N, D]`` for ``keys [B, H, S, D]``, with N at most S."""
    batch, heads, tokens, head_dim = keys.shape
    if role != "key":
        raise InnerQError("queries are not allowed for values: leave them out")
    whole = isinstance(queries, torch.Tensor) and queries.dim() == 4 and queries.is_floating_point()
    if whole and queries.device == keys.device:
        b, q_heads, rows, d = queries.shape
        if (b, d) == (batch, head_dim) and q_heads and q_heads % heads == 0 and rows <= tokens:
            return
    shape = tuple(queries.shape) if isinstance(queries, torch.Tensor) else queries
    raise InnerQError(
        f"queries={shape!r} are not allowed: they have to be a tensor of shape [{batch}, a multiple of {heads}, "
        f"at most {tokens}, {head_dim}] on {keys.device}; leave them out where they are not known"
    )
