"""The format of a quantized cache: the one description that passes, kernels and tests read.

A :class:`CacheFormat` is made from an ``InnerQConfig`` for one side (keys or values) of one cache, once its dtype and
head_dim are known. In graphs it is a string, ``CacheFormat.spec``: a call of an operator names its format completely,
and caches of different formats never share a compiled graph.
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
GROUP_SIZES: tuple[int, ...] = (16, 32, 64, 128)
#: Tokens in a block: the unit in which the quantized region grows, unless value groups are longer.
BLOCK_TOKENS = 32
#: dtypes that kernels compute with, in float32 and with operands of 16 bits. Anything of float64 is the reference's.
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: dtypes that a cache may have before it is quantized, and whatever meets one.
DTYPES = (*KERNEL_DTYPES, torch.float64)
#: Lanes of a slice: what a tensor core contracts at a time. A cache holds a multiple of it, see ``channels.py``.
LANES = 16
#: The largest head_dim that kernels support.
MAX_HEAD_DIM = 576
#: Blocks that a rolling cache is allocated with, which hold nothing; ``torch.compile`` specializes on sizes 0 and 1.
ROLLING_BLOCKS = 2
#: Spare blocks that a cache is allocated with at least, when it is made and when it grows.
SPARE_BLOCKS = 4
#: Dropped tokens are removed from memory in multiples of this: of every block, and of the ring of all presets.
FORGOTTEN_AT_ONCE = 128


class FormatError(ValueError):
    """An invalid cache format. The message names the value, what is allowed, and what to do."""


@dataclasses.dataclass(frozen=True)
class CacheFormat:
    """The format of one side of a quantized cache.

    Attributes:
        role: ``key`` (a group is channels of one token) or ``value`` (a group is tokens of one channel).
        bits: bits of a code, 2 to 8. Ignored by the modes ``none`` and ``rolling``.
        mode: name of the quantization mode, see ``kernels/modes`` and ``docs/formats.md``.
        group_size: elements that share one scale.
        sink: tokens at the start of a sequence that stay in full precision.
        recent: least number of tokens at the end of a sequence that stay in full precision.
        scale_dtype: how scales and zero points are stored: a name in ``scale_types.SCALE_TYPES`` that the mode allows.
        norm: how the key normalization is computed, and which channels share it, see ``kernels/pairs.py``.
        zeros: how many channels of zeros are held behind those of the program, see ``kernels/channels.py``.
    """

    role: Role
    bits: int
    mode: str
    group_size: int
    sink: int
    recent: int
    scale_dtype: str
    norm: str = "channel"
    zeros: int = 0

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
    def rolls(self) -> bool:
        """True for the format of short sliding windows: the recent window is all that there is."""
        return self.quantization.rolls

    @property
    def has_zero(self) -> bool:
        """Whether groups have a zero point."""
        return self.quantization.has_zero

    @property
    def uses_queries(self) -> bool:
        """Whether codes are chosen with the query profile, which the cache then holds."""
        return self.quantization.uses_queries

    @property
    def is_paired(self) -> bool:
        """Whether one element of the scales holds both the scale and the zero point of a group."""
        return self.scale_type.holds_zero

    @property
    def scales_per_group(self) -> int:
        """Elements per group in the tensor of scales: 2 where the zero point is an element of its own, else 1."""
        return 2 if self.has_zero and not self.is_paired else 1

    @property
    def block(self) -> int:
        """Tokens in a block of the quantized region."""
        return BLOCK_TOKENS if self.is_key else max(BLOCK_TOKENS, self.group_size)

    @property
    def ring(self) -> int:
        """Slots of the recent window. After an append it holds ``recent`` to ``recent + block - 1`` tokens."""
        return ring_slots(self.recent, self.block)

    @property
    def window(self) -> int:
        """Slots of the windows: the sinks, then the ring of recent tokens."""
        return self.sink + self.ring

    @property
    def code_offset(self) -> int:
        """Subtracted from a code before it is multiplied by the scale, in modes without a zero point; else 0."""
        return 0 if self.has_zero else decoding.code_offset(self.bits)

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        """dtype of the tensor of scales."""
        return self.scale_type.storage

    @functools.cached_property
    def spec(self) -> str:
        """The format as a string without spaces: ``CacheFormat.parse(f.spec) == f``."""
        *words, norm, zeros = [str(getattr(self, field.name)) for field in dataclasses.fields(self)]
        last = [norm, zeros] if self.zeros else [norm] if norm != "channel" else []
        return ":".join((*words, *last))

    @staticmethod
    @functools.cache
    def parse(spec: str) -> CacheFormat:
        values = spec.split(":")
        most = len(dataclasses.fields(CacheFormat))
        if not most - 2 <= len(values) <= most:
            raise FormatError(
                f"{spec!r} is no cache format: expected {most - 2} fields, and perhaps a norm and a number of zeros"
            )
        word, bits, mode, group_size, sink, recent, scale_dtype, *last = values
        norm, zeros = (*last, *("channel", "0")[len(last) :])
        role: Role | None = next((role for role in ROLES if role == word), None)
        if role is None:
            raise FormatError(f"{spec!r} is no cache format: it has to begin with {' or '.join(ROLES)}")
        if mode not in modes.MODES or role not in modes.MODES[mode].roles:
            raise FormatError(f"{spec!r} is no cache format: modes of a {role} are {', '.join(modes.names_of(role))}")
        numbers = (int(group_size), int(sink), int(recent))
        return CacheFormat(role, int(bits), mode, *numbers, scale_dtype, norm, int(zeros))


def obstacle(role: Role, head_dim: int, dtype: torch.dtype, *, latent: bool = False) -> str:
    """Why the keys or the values of a layer cannot be quantized, whatever the config; empty if they can be.

    The rotary key of a ``latent`` layer may have no channels: there are such layers without positions.
    """
    if dtype not in DTYPES:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        return f"a {role} cache of dtype {dtype} cannot be quantized: allowed are {allowed}"
    least = 0 if latent and role == "key" else 1
    if not least <= head_dim <= MAX_HEAD_DIM:
        return f"a {role} cache of head_dim {head_dim} cannot be quantized: allowed are {least} to {MAX_HEAD_DIM}"
    return ""


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to compute with numbers of ``dtypes`` in: float64 if one of them is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def ring_slots(recent: int, block: int) -> int:
    """Slots of the recent window: a ring of ``recent`` tokens and those of a block that is not complete yet."""
    return recent + block


def default_scale_dtype(dtype: torch.dtype, mode: str = "signed") -> str:
    """The scale type of a cache of ``dtype`` where the config gives none. All of them take 16 bits per group.

    Groups with a zero point use ``pair8``, whose scales have the range of float16 whatever the dtype of the cache:
    numbers above about 1e5 saturate, and those below about 1e-5 become coarse or zero. Other groups use scales with the
    range of the elements: float16 in a float16 cache, else bfloat16. Its short mantissa costs no accuracy, since codes
    are chosen for the scale as it is stored.
    """
    return modes.default_scale_type(modes.named(mode), "float16" if dtype == torch.float16 else "bfloat16")


def default_group_size(role: Role, head_dim: int) -> int:
    """32, as in the paper, or 16 for keys whose head_dim, as it is held, is no multiple of 32."""
    return 16 if role == "key" and head_dim % 32 else 32


def blocks_for(fmt: CacheFormat, length: Any) -> Any:
    """Quantized blocks of a sequence of ``length`` real tokens: those between its sinks and its recent window."""
    if fmt.rolls:
        return 0
    return torch.sym_max((length - fmt.sink - fmt.recent) // fmt.block, 0)


def longest(fmt: CacheFormat, capacity: int) -> int:
    """Real tokens, without dropped ones, of the longest sequence that ``capacity`` blocks can hold."""
    if fmt.rolls:
        return fmt.ring
    return fmt.sink + fmt.recent + (capacity + 1) * fmt.block - 1


def preallocated_capacity(fmt: CacheFormat, tokens: Any) -> Any:
    """Blocks to allocate for a cache that never holds more than ``tokens`` tokens.

    At least two: ``torch.compile`` specializes on sizes 0 and 1, and one graph should serve caches of all sizes.
    """
    return blocks_for(fmt, tokens) + 2


def shadow_capacity(fmt: CacheFormat, tokens: Any, rolls: bool) -> Any:
    """Blocks to allocate for the shadow of a buffer of ``tokens`` tokens.

    If new tokens push the oldest ones out, these stay in memory until so many are dropped as are forgotten at once.
    """
    return preallocated_capacity(fmt, tokens + 2 * FORGOTTEN_AT_ONCE if rolls else tokens)


def grown_capacity(fmt: CacheFormat, length: Any) -> Any:
    """Blocks to allocate for ``length`` real tokens when a cache is made or has to grow.

    A sixteenth more than they need, and at least :data:`SPARE_BLOCKS` more, so that appending token by token copies a
    number of blocks that is linear in the length. ``length`` may be an int, a SymInt or an ``fx.Proxy``; so is the
    result.
    """
    if fmt.rolls:
        return ROLLING_BLOCKS
    blocks = blocks_for(fmt, length)
    return blocks + torch.sym_max(blocks // 16, SPARE_BLOCKS)
