"""Sliding windows: keys and values of which a program keeps the last tokens only.

full = cat([past, k], dim=2)
out = attention(q, full, ...)
return full[:, :, -W + 1:, :], ...          # the slice is what the cache is from then on
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import Node

from ...kernels.channels import held_head_dim
from ...kernels.formats import CacheFormat, Role, default_group_size, default_scale_dtype
from ..context import CacheUse, PassContext
from ..graph.dimensions import full_index
from ..graph.reading import is_output, read
from ..graph.values import plain_size, shape, sizes_of, value_of

#: A cache of at most so many tokens is held exactly, in a ring: a longer one takes fewer bytes quantized, behind its
#: recent window. Whether the new token counts among those of a window differs between programs; this one is not.
SHORT_WINDOW = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class LastTokens:
    """A slice that takes the last tokens of a tensor, perhaps all of them.

    Attributes:
        node: the slice.
        source: the tensor.
        window: how many tokens it takes at most, where that is a constant: ``source[:, :, -window:]``; else None.
    """

    node: Node
    source: Node
    window: int | None


def last_tokens(node: Any, tokens_dim: int) -> LastTokens | None:
    """How ``node`` takes the last tokens of a tensor, ``[:, :, a:]``; None if it is anything else."""
    call = read(node)
    source = None if call is None else call.source()
    sizes = shape(source)
    if call is None or source is None or call.name != "getitem" or sizes is None:
        return None
    index = full_index(call["index"], len(sizes))
    if len(index) <= tokens_dim or any(not isinstance(entry, slice) for entry in index):
        return None
    entry = index[tokens_dim]
    others = (other for dim, other in enumerate(index) if dim != tokens_dim)
    if any(other != slice(None) for other in others) or entry.stop is not None or entry.step not in (None, 1):
        return None
    start = value_of(entry.start)
    return LastTokens(node, source, -start if isinstance(start, int) and start < 0 else None)


def kept_part(node: Node, tokens_dim: int) -> LastTokens | None:
    """The last tokens of ``node`` that the graph returns in its place; None if it returns none, or all of them too."""
    if is_output(node):
        return None
    parts = [part for user in node.users if is_output(user) and (part := last_tokens(user, tokens_dim)) is not None]
    return parts[0] if len(parts) == 1 else None


def dropped(use: CacheUse) -> int | torch.SymInt:
    """How many tokens at the front of a cache the graph does not return."""
    return cut(use.node, use.kept, use.tokens_dim)


def cut(longer: Node, shorter: Node | None, tokens_dim: int) -> int | torch.SymInt:
    """How many tokens fewer ``shorter`` has than ``longer``; 0 if there is none."""
    if shorter is None:
        return 0
    return plain_size(sizes_of(longer)[tokens_dim] - sizes_of(shorter)[tokens_dim])


def format_of(
    context: PassContext,
    role: Role,
    head_dim: int,
    dtype: torch.dtype,
    window: int | None,
    *,
    latent: bool = False,
) -> CacheFormat:
    """The format of a cache of which the program keeps at most ``window`` tokens; None if it keeps all.

    Args:
        latent: whether it is of a latent attention.

    Raises:
        GraphError: if the config does not support this head_dim or dtype.
    """
    if window is not None and window <= SHORT_WINDOW:
        return rolling_format(context, role, head_dim, dtype, window, latent=latent)
    return context.format_for(role, head_dim, dtype, latent=latent)


def rolling_format(
    context: PassContext, role: Role, head_dim: int, dtype: torch.dtype, window: int, *, latent: bool = False
) -> CacheFormat:
    """The format that holds the last ``window`` tokens exactly; ``latent`` as of :func:`format_of`.

    Raises:
        GraphError: if the config does not support this head_dim or dtype.
    """
    context.format_for(role, head_dim, dtype, latent=latent)
    head_dim = int(head_dim)
    scales, held = default_scale_dtype(dtype, "rolling"), held_head_dim(head_dim, quantized=False)
    group_size = default_group_size(role, held)  # of no groups
    return CacheFormat(role, 8, "rolling", group_size, 0, window, scales, zeros=held - head_dim)


def fits_ring(fmt: CacheFormat, part: LastTokens | None, count: Any) -> bool:
    """Whether a rolling cache of which the program keeps ``part`` has room for ``count`` tokens more."""
    return part is not None and part.window is not None and isinstance(count, int) and part.window + count <= fmt.ring
