"""What a quantized cache tensor looks like: the one description that every kernel, pass and test reads.

A :class:`CacheFormat` is resolved from an ``InnerQConfig`` for one side (keys or values) of one cache, when its
dtype and head_dim are known. It travels through graphs as a short string, ``CacheFormat.spec``, so that an operator
call names its format in full and two formats never share a compiled graph.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from . import modes
from .modes import QuantizationMode, Role, decoding
from .scale_types import SCALE_TYPES, ScaleType

ROLES: tuple[Role, ...] = ("key", "value")
#: Rows behind the windows of keys whose mode uses queries, for the two bytes a channel of the query profile.
QUERY_ROWS = 1
GROUP_SIZES: tuple[int, ...] = (16, 32, 64, 128)
#: Tokens in a block: the unit in which the quantized region grows, unless value groups are longer.
BLOCK_TOKENS = 32
#: Codes that are packed together, and the step in which head_dim may vary (one tensor-core slice).
LANES = 16
#: Blocks that a storage has to spare, at least, when it is made or grows.
SPARE_BLOCKS = 4


class FormatError(ValueError):
    """A cache format that cannot be built. The message names the value, what is allowed and a way out."""


@dataclasses.dataclass(frozen=True)
class CacheFormat:
    """The format of one side of a quantized cache.

    Attributes:
        role: ``key`` (groups run over the channels of a token) or ``value`` (groups run over the tokens of a channel).
        bits: bits of a code, 2 to 8. Ignored by mode ``none``.
        mode: name of the quantization mode, see ``kernels/modes`` and ``docs/formats.md``.
        group_size: elements that share one scale.
        sink: tokens at the start of a sequence that stay in full precision.
        recent: tokens at the end of a sequence that stay in full precision, at least.
        scale_dtype: how scales and zero points are stored, one of ``scale_types.SCALE_TYPES`` that goes with the mode.
        norm: how the key normalization is taken, and which channels share it, see ``kernels/pairs.py``.
    """

    role: Role
    bits: int
    mode: str
    group_size: int
    sink: int
    recent: int
    scale_dtype: str
    norm: str = "channel"

    @property
    def is_key(self) -> bool:
        return self.role == "key"

    @functools.cached_property
    def quantization(self) -> QuantizationMode:
        """The mode itself."""
        return modes.named(self.mode)

    @property
    def scale_type(self) -> ScaleType:
        """How scales are stored."""
        return SCALE_TYPES[self.scale_dtype]

    @property
    def quantized(self) -> bool:
        """False for the lossless format, whose blocks hold the elements themselves."""
        return self.quantization.stores_codes

    @property
    def has_zero(self) -> bool:
        """Whether groups have a zero point."""
        return self.quantization.has_zero

    @property
    def uses_queries(self) -> bool:
        """Whether the cache holds a query profile, which its codes are chosen by."""
        return self.quantization.uses_queries

    @property
    def is_paired(self) -> bool:
        """Whether scale and zero point of a group share a word."""
        return self.scale_type.holds_zero

    @property
    def scales_per_group(self) -> int:
        """Elements that a group has in the tensor of scales: its scale, and its zero point where that is one more."""
        return 2 if self.has_zero and not self.is_paired else 1

    @property
    def block(self) -> int:
        """Tokens in a block of the quantized region."""
        return BLOCK_TOKENS if self.is_key else max(BLOCK_TOKENS, self.group_size)

    @property
    def ring(self) -> int:
        """Slots of the recent window: it holds ``recent`` to ``recent + block - 1`` tokens after an append."""
        return ring_slots(self.recent, self.block)

    @property
    def window(self) -> int:
        """Slots of the high-precision windows, the sinks first and the ring of recent tokens behind them."""
        return self.sink + self.ring

    @property
    def window_rows(self) -> int:
        """Rows of the tensor of windows: their slots, and behind them the query profile where there is one."""
        return self.window + (QUERY_ROWS if self.uses_queries else 0)

    @property
    def code_offset(self) -> int:
        """What is taken from an unsigned code before the scale, in modes without a zero point."""
        return 0 if self.has_zero else decoding.code_offset(self.bits)

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        """dtype of the tensor of scales."""
        return self.scale_type.storage

    @functools.cached_property
    def spec(self) -> str:
        """The format as one word, ``CacheFormat.parse(f.spec) == f``."""
        words = [str(getattr(self, field.name)) for field in dataclasses.fields(self)]
        return ":".join(words[:-1] if self.norm == "channel" else words)

    @staticmethod
    @functools.cache
    def parse(spec: str) -> CacheFormat:
        values = spec.split(":")
        fields = dataclasses.fields(CacheFormat)
        if len(values) not in (len(fields), len(fields) - 1):
            raise FormatError(f"{spec!r} is no cache format: expected {len(fields) - 1} fields, and perhaps a norm")
        word, bits, mode, group_size, sink, recent, *words = values
        role: Role | None = next((role for role in ROLES if role == word), None)
        if role is None:
            raise FormatError(f"{spec!r} is no cache format: it has to begin with {' or '.join(ROLES)}")
        if mode not in modes.names_of(role):
            raise FormatError(f"{spec!r} is no cache format: modes of a {role} are {', '.join(modes.names_of(role))}")
        return CacheFormat(role, int(bits), mode, int(group_size), int(sink), int(recent), *words)


def ring_slots(recent: int, block: int) -> int:
    """Slots of the recent window: a ring that holds ``recent`` tokens and those of a block that is not full yet."""
    return recent + block


def default_scale_dtype(dtype: torch.dtype, mode: str = "signed") -> str:
    """The scale type of a cache of ``dtype`` whose config names none: 16 bits a group in every mode.

    Groups with a zero point take ``pair8``, whose scales have the range of float16 in every cache: numbers beyond about
    1e5 saturate, and those below about 1e-5 are coarse or zero; ``bfloat16`` holds more. Scales of others have the
    range of the elements: a float32 cache takes bfloat16. Codes are chosen for the rounded scale, so its short mantissa
    costs nothing, while float16 would overflow.
    """
    return modes.default_scale_type(modes.named(mode), "float16" if dtype == torch.float16 else "bfloat16")


def default_group_size(role: Role, head_dim: int) -> int:
    """32 as published, or 16 for the keys of a head_dim that 32 does not divide."""
    return 16 if role == "key" and head_dim % 32 else 32


def blocks_for(fmt: CacheFormat, length: Any) -> Any:
    """Blocks that a sequence of ``length`` real tokens has behind its sinks and before its recent window."""
    return torch.sym_max((length - fmt.sink - fmt.recent) // fmt.block, 0)


def longest(fmt: CacheFormat, capacity: int) -> int:
    """Real tokens of the longest sequence for which ``capacity`` blocks are enough."""
    return fmt.sink + fmt.recent + (capacity + 1) * fmt.block - 1


def preallocated_capacity(fmt: CacheFormat, tokens: Any) -> Any:
    """Blocks of a cache that never holds more than ``tokens`` tokens.

    Two at least: compilers take sizes of 0 and 1 for constants, and one graph is to serve caches of all sizes.
    """
    return blocks_for(fmt, tokens) + 2


def grown_capacity(fmt: CacheFormat, length: Any) -> Any:
    """Blocks to allocate for ``length`` real tokens and those to come: a sixteenth more than they need, and
    :data:`SPARE_BLOCKS` more at least, so that appending token by token stays linear.

    Takes and returns whatever does integer arithmetic (an int, a SymInt, a graph's proxy).
    """
    blocks = blocks_for(fmt, length)
    return blocks + torch.sym_max(blocks // 16, SPARE_BLOCKS)
