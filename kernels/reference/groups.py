"""Groups of elements to codes and scales, and back; blocks of groups to packed words, and back."""

from __future__ import annotations

import torch

from .. import layout, scale_types
from ..formats import CacheFormat
from ..modes.mode import Encoded, SideData
from .numbers import as_float, saturate


def quantize_groups(x: torch.Tensor, fmt: CacheFormat, side_data: SideData = None) -> Encoded:
    """Quantize groups ``[..., group_size]``.

    Codes are chosen for the rounded scale, see ``modes/affine.py`` and ``modes/paired.py``. A group whose scale is zero
    or subnormal in float32 decodes to zero (to its zero point, where it has one). NaN in a group makes its scale NaN.

    Args:
        x: elements, ``[..., group_size]``.
        fmt: the format.
        side_data: what the mode's ``side_data`` gives, in groups as ``x``; None in modes without.

    Returns:
        Codes without sign ``[..., group_size]`` int32, and scales ``[...]`` and zero points ``[...]`` as they are
        stored. There are no zero points (None) in modes without, and where words hold both.
    """
    encode = fmt.quantization.encode
    assert encode is not None, f"mode {fmt.mode} has no codes"
    return encode(saturate(as_float(x)), fmt, side_data)


def scale_numbers(
    scales: torch.Tensor, zeros: torch.Tensor | None, fmt: CacheFormat, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points (None in modes without), ``[...]`` in ``dtype``, of what a cache holds of them."""
    return scale_types.numbers(scales, zeros, fmt.scale_type, fmt.bits, dtype)


def dequantize_groups(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    fmt: CacheFormat,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The elements ``[..., group_size]`` in ``dtype`` of what :func:`quantize_groups` gave."""
    decode = fmt.quantization.decode
    assert decode is not None, f"mode {fmt.mode} has no codes"
    return decode(codes, *scale_numbers(scales, zeros, fmt, dtype), fmt.bits)


def encode_blocks(
    x: torch.Tensor, fmt: CacheFormat, query_profile: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks ``[..., block, D]`` as ``codes [..., W]`` and ``scales [..., P]``.

    ``query_profile [..., 2, D]``, which broadcasts to the blocks, for modes that use it; None where nothing is known.
    """
    *lead, block, head_dim = x.shape
    mode = fmt.quantization
    if not mode.stores_codes:
        return x.reshape(*lead, block * head_dim), x.new_empty((*lead, 0), dtype=fmt.torch_scale_dtype)
    known = mode.side_data(x, query_profile, fmt.group_size) if mode.side_data else None
    if known is not None:
        known = tuple(layout.split_groups(numbers, fmt) for numbers in known)
    codes, scales, zeros = quantize_groups(layout.split_groups(x, fmt), fmt, known)
    words = layout.pack(layout.join_groups(codes, fmt, head_dim), fmt)
    return words, scales if zeros is None else torch.cat((scales, zeros), dim=-1)


def decode_blocks(
    codes: torch.Tensor,
    scales: torch.Tensor,
    fmt: CacheFormat,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The elements that blocks ``codes [..., W]``, ``scales [..., P]`` hold, ``[..., block, D]`` in ``dtype``."""
    if not fmt.quantized:
        return codes.reshape(*codes.shape[:-1], fmt.block, head_dim).to(dtype)
    groups = layout.groups_per_block(fmt, head_dim)
    zeros = scales[..., groups:] if fmt.scales_per_group == 2 else None
    unpacked = layout.split_groups(layout.unpack(codes, fmt, head_dim), fmt)
    return layout.join_groups(dequantize_groups(unpacked, scales[..., :groups], zeros, fmt, dtype), fmt, head_dim)
