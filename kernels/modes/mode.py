"""What a quantization mode is: how a group of elements becomes codes and a scale, and what that requires.

Modes differ in how they choose codes. A group decodes in one of two ways, which is all that attention depends on:
``code * scale + zero`` in modes with a zero point, else ``(code - 2^(bits - 1)) * scale``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch

from ..scale_types import SCALE_TYPES, ScaleType

Role = Literal["key", "value"]

#: Unsigned codes ``[..., group_size]`` int32; stored scales ``[...]``; stored zero points ``[...]``, or None in modes
#: without them and where the elements of the scales hold them.
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
#: Tensors with one number per element, or None where there is no such data.
SideData = tuple[torch.Tensor, ...] | None


class GroupFormat(Protocol):
    """The part of a format that encoders read. A ``CacheFormat`` has it."""

    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def scale_type(self) -> ScaleType: ...


def _no_constants(fmt: GroupFormat) -> dict[str, str]:
    return {}


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizationMode:
    """One quantization mode. Each has a file of its own in this folder, in ``triton/modes`` and in ``cpu/modes``.

    Attributes:
        name: its name in configs and formats.
        scale_types: names of the scale types (``kernels/scale_types.py``) that it supports.
        encode: ``encode(x, format, side_data)`` is the reference encoder: it returns the codes, scales and zero points
            of groups ``x [..., group_size]`` of finite numbers or NaN, float32 or float64. The encoders in Triton and
            C++ give the same bits. None in the mode that stores the elements themselves.
        decode: ``decode(codes, scales, zeros, bits)`` returns the elements, see ``modes/decoding.py``.
        roles: the sides of a cache that may have this mode.
        has_zero: whether groups have a zero point.
        uses_anchor: whether the zero point is chosen so that the token of least norm is exact, see
            ``modes/anchored.py``.
        uses_queries: whether codes are chosen with the query profile, see ``modes/steered.py``. Caches then hold one.
        side_data: ``side_data(blocks, query_profile, group_size)`` computes what ``encode`` needs besides the elements:
            tensors of the shape of ``blocks [..., block, D]``. ``query_profile`` is ``[..., 2, D]`` or None.
        rolls: whether blocks hold nothing, see ``modes/rolling.py``.
        fallback: name of the mode that takes its place for bits or scale types that it does not support.
        most_bits: for names of scale types: the most bits of a code that it supports with them, where not 8.
        triton_encoder: name of the encoder in ``triton/modes/<name>.py``.
        cpp_encoder: name of the class in ``cpu/modes/<name>.h``.
        cpp_constants: ``cpp_constants(format)`` returns the constants that this class needs: values by C++ declaration
            (``"int COUNT": "4"``).
    """

    name: str
    scale_types: tuple[str, ...]
    encode: Callable[[torch.Tensor, GroupFormat, SideData], Encoded] | None
    decode: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, int], torch.Tensor] | None
    roles: tuple[Role, ...] = ("key", "value")
    has_zero: bool = False
    uses_anchor: bool = False
    uses_queries: bool = False
    side_data: Callable[[torch.Tensor, torch.Tensor | None, int], SideData] | None = None
    rolls: bool = False
    fallback: str | None = None
    most_bits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    triton_encoder: str | None = None
    cpp_encoder: str | None = None
    cpp_constants: Callable[[GroupFormat], dict[str, str]] = _no_constants

    @property
    def stores_codes(self) -> bool:
        """False in the mode whose blocks hold the elements themselves."""
        return self.encode is not None

    def serves(self, bits: int, scale_type: str) -> bool:
        """Whether this mode supports codes of ``bits`` bits with this scale type."""
        return scale_type in self.scale_types and bits <= self.most_bits.get(scale_type, 8)


#: Names of scale types, for modes without a zero point; for modes whose scales are ordinary floating-point numbers; and
#: for modes with a zero point, which may share an element with the scale.
WITHOUT_ZERO = tuple(name for name, scale_type in SCALE_TYPES.items() if not scale_type.holds_zero)
ORDINARY = tuple(name for name, scale_type in SCALE_TYPES.items() if not scale_type.is_short)
WITH_ZERO = (*ORDINARY, *(name for name, scale_type in SCALE_TYPES.items() if scale_type.holds_zero))
