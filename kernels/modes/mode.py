"""What a quantization mode is: how a group of elements becomes codes and a scale, and what that takes.

Whatever a mode does to choose its codes, a group decodes in one of two ways, which is all that attention knows of it:
``code * scale + zero`` in modes with a zero point, else ``(code - 2^(bits - 1)) * scale``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch

from ..scale_types import SCALE_TYPES, ScaleType

Role = Literal["key", "value"]

#: Codes ``[..., group_size]`` int32 without sign; scales ``[...]`` and zero points ``[...]`` as they are stored. The
#: last are None in modes without a zero point, and where the element of the scale holds it.
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
#: Tensors with a number for each element, or None where nothing is known.
SideData = tuple[torch.Tensor, ...] | None


class GroupFormat(Protocol):
    """What a mode has to know of a format; a ``CacheFormat`` has it."""

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
    """One quantization mode. Each has a file of its own in this folder, and one in ``triton/modes`` and ``cpu/modes``.

    Attributes:
        name: what configs and formats call it.
        scale_types: names of the scale types (``kernels/scale_types.py``) that go with it.
        encode: ``encode(x, format, side_data)`` gives the codes, scales and zero points of groups
            ``x [..., group_size]`` of finite numbers (or NaN), float32 or float64. Every other encoder gives the same
            bits. None in the mode that stores the elements themselves.
        decode: ``decode(codes, scales, zeros, bits)`` gives the elements, see ``modes/decoding.py``.
        roles: the sides of a cache that may have it.
        has_zero: whether groups have a zero point.
        uses_anchor: whether it puts the token of least norm on a code, see ``modes/anchored.py``.
        uses_queries: whether it reads the query profile, see ``modes/steered.py``. Caches of the mode hold one.
        side_data: ``side_data(blocks, query_profile, group_size)`` gives what ``encode`` has to know of elements beside
            their numbers: tensors shaped like ``blocks [..., block, D]``. ``query_profile`` is ``[..., 2, D]`` or None.
        fallback: the mode that serves where this one cannot.
        most_bits: most bits of a code, for the names of scale types that take fewer than 8.
        triton_encoder: the function in ``triton/modes/<name>.py``.
        cpp_encoder: the class in ``cpu/modes/<name>.h``.
        cpp_constants: constants of a format that this class needs, as C++ declarations ``type name: value``.
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
    fallback: str | None = None
    most_bits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    triton_encoder: str | None = None
    cpp_encoder: str | None = None
    cpp_constants: Callable[[GroupFormat], dict[str, str]] = _no_constants

    @property
    def stores_codes(self) -> bool:
        """False for the mode whose blocks hold the elements themselves."""
        return self.encode is not None

    def serves(self, bits: int, scale_type: str) -> bool:
        """Whether groups of so many bits with such scales can have this mode."""
        return scale_type in self.scale_types and bits <= self.most_bits.get(scale_type, 8)


#: Names of the scale types that hold a scale alone, of those that torch computes with, and of those that also hold the
#: zero point.
WITHOUT_ZERO = tuple(name for name, scale_type in SCALE_TYPES.items() if not scale_type.holds_zero)
ORDINARY = tuple(name for name, scale_type in SCALE_TYPES.items() if not scale_type.is_short)
WITH_ZERO = (*ORDINARY, *(name for name, scale_type in SCALE_TYPES.items() if scale_type.holds_zero))
