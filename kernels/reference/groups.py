"""Encoding and decoding of groups (to codes and scales) and of blocks (to packed words)."""

from __future__ import annotations

import torch

from .. import layout, scale_types
from ..formats import CacheFormat
from ..modes.mode import Encoded, SideData
from .numbers import as_float, saturate


def quantize_groups(x: torch.Tensor, fmt: CacheFormat, side_data: SideData = None) -> Encoded:
    """Quantize groups ``[..., group_size]``.

    Codes are chosen for the rounded scale, see ``modes/affine.py`` and ``modes/paired.py``. A group whose scale is zero
    or subnormal in float32 decodes to zero, or to its zero point. NaN in a group makes its scale NaN.

    Args:
        x: elements, ``[..., group_size]``.
        fmt: the format.
        side_data: the result of the mode's ``side_data``, split into groups as ``x`` is; None in modes without it.

    Returns:
        Unsigned codes ``[..., group_size]`` int32, stored scales ``[...]`` and stored zero points ``[...]``. The last
        are None in modes without zero points, and where the elements of the scales hold them.
    """
    encode = fmt.quantization.encode
    assert encode is not None, f"mode {fmt.mode} has no codes"
    return encode(saturate(as_float(x)), fmt, side_data)


def scale_numbers(
    scales: torch.Tensor, zeros: torch.Tensor | None, fmt: CacheFormat, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decode stored scales and zero points to ``[...]`` in ``dtype``, see ``scale_types.numbers``."""
    return scale_types.numbers(scales, zeros, fmt.scale_type, fmt.bits, dtype)


def dequantize_groups(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    fmt: CacheFormat,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Decode the results of :func:`quantize_groups` to elements ``[..., group_size]`` in ``dtype``."""
    decode = fmt.quantization.decode
    assert decode is not None, f"mode {fmt.mode} has no codes"
    return decode(codes, *scale_numbers(scales, zeros, fmt, dtype), fmt.bits)


def encode_blocks(
    x: torch.Tensor, fmt: CacheFormat, query_profile: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize and pack blocks ``[..., block, D]`` to ``codes [..., W]`` and ``scales [..., P]``.

    ``query_profile [..., 2, D]`` broadcasts to the blocks. It is used in modes that use queries; None weighs all
    channels equally.
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
    """Unpack and dequantize blocks ``codes [..., W]``, ``scales [..., P]`` to ``[..., block, D]`` in ``dtype``."""
    if not fmt.quantized:
        return codes.reshape(*codes.shape[:-1], fmt.block, head_dim).to(dtype)
    groups = layout.groups_per_block(fmt, head_dim)
    zeros = scales[..., groups:] if fmt.scales_per_group == 2 else None
    unpacked = layout.split_groups(layout.unpack(codes, fmt, head_dim), fmt)
    return layout.join_groups(dequantize_groups(unpacked, scales[..., :groups], zeros, fmt, dtype), fmt, head_dim)
