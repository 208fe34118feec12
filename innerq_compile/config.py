"""What a user can choose: :class:`InnerQConfig`.

The config is frozen and validated when it is made, so that a wrong value fails where it was written. Everything that
depends on the model (dtype, head_dim) is resolved later, by :meth:`InnerQConfig.format_for`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from .errors import InnerQError
from .kernels import modes
from .kernels.formats import GROUP_SIZES, LANES, ROLES, CacheFormat, default_group_size, default_scale_dtype
from .kernels.modes import Role
from .kernels.scale_types import FLOAT8, SCALE_TYPES
from .presets import PRESETS

#: dtypes of caches that can be quantized.
CACHE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256

#: How the key normalization is taken: shared by rotary pairs, by channel, or as published.
KEY_NORMS = ("pair", "channel", "paper")


@dataclasses.dataclass(frozen=True)
class InnerQConfig:
    """How caches are quantized. Start from a preset: ``InnerQConfig.preset("base", recent=128)``.

    Attributes:
        key_bits, value_bits: bits of a code, 2 to 8 (ignored by mode ``none``).
        key_mode, value_mode: how a group is coded: ``symmetric`` (as published: 2^b - 1 levels), ``signed`` (all 2^b
            levels, the sign of the scale says on which side the extra one lies), ``asymmetric`` (scale and zero
            point), ``anchored`` (values only: asymmetric, with the token of least norm on a code; ``hybrid`` where
            ``pair8`` words of 6 or more bits have too coarse a zero point for it), ``steered`` (keys only: asymmetric,
            with the zero point whose errors the prompt's queries see least; ``hybrid`` for 6 or more bits, and where
            ``scale_dtype`` asks for others than ``pair8`` words), ``hybrid`` (signed or asymmetric,
            whichever is closer, per group), ``paper_hybrid`` (as published: symmetric, or asymmetric with one bit
            less), ``none`` (not quantized).
        group_size: elements that share a scale: 16, 32, 64 or 128. None takes 32, and 16 for keys whose head_dim 32
            does not divide.
        sink: tokens at the start of each sequence that stay in full precision.
        recent: tokens at the end of each sequence that stay in full precision, at least.
        centre_keys: take each channel's mean over the prompt out of the keys. The softmax does not see it.
        normalize_keys: divide each key channel by its normalization (square root of the largest magnitude in the
            prompt), and multiply the query by it.
        key_norm: how that is taken. ``pair``: the two channels of a rotary pair share it where the rotary embedding is
            recognized, so that it can be folded into the projections of query and key. ``channel``: each channel by
            itself, behind the rotary embedding. ``paper``: the same without limits, as published.
        scale_dtype: how scales are stored: ``float16``, ``bfloat16``, ``float32``; ``float8_e5m2``, for modes without a
            zero point; ``pair8``, scale and zero point of a group in one word of 16 bits, for modes with one. A side
            whose mode does not go with it takes the default (None): ``pair8`` for modes with a zero point, else
            float16 for float16 caches and bfloat16 for others.
            Numbers beyond what a short scale reaches saturate (``docs/formats.md``).
        strict: raise an error for an attention that cannot be rewritten, instead of leaving it as it is.
        rewrite: False keeps the quantized cache and leaves attention to the program, which reads it dequantized: slow,
            and a way to tell the quantizer from the rewrite (``docs/debugging.md``).
        disabled_passes: names of passes that are switched off, see ``passes/__init__.py``.

    Raises:
        InnerQError: for a value that is not allowed; the message says what is.
    """

    key_bits: int = 3
    value_bits: int = 3
    key_mode: str = "steered"
    value_mode: str = "anchored"
    group_size: int | None = None
    sink: int = 32
    recent: int = 96
    centre_keys: bool = True
    normalize_keys: bool = True
    key_norm: str = "channel"
    scale_dtype: str | None = None
    strict: bool = False
    rewrite: bool = True
    disabled_passes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("key_bits", "value_bits"):
            _check(name, getattr(self, name), _is_int(getattr(self, name), 2, 8), "a whole number from 2 to 8")
        for role in ROLES:
            name, allowed = f"{role}_mode", modes.names_of(role)
            _check(name, getattr(self, name), getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        _check(
            "group_size",
            self.group_size,
            self.group_size is None or (_is_int(self.group_size, 1, 128) and self.group_size in GROUP_SIZES),
            f"None or one of {', '.join(map(str, GROUP_SIZES))}",
        )
        for name in ("sink", "recent"):
            _check(name, getattr(self, name), _is_int(getattr(self, name), 0, 1 << 20), "a whole number, 0 or more")
        for name in ("centre_keys", "normalize_keys", "strict", "rewrite"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")
        _check("key_norm", self.key_norm, self.key_norm in KEY_NORMS, f"one of {', '.join(KEY_NORMS)}")
        _check(
            "scale_dtype",
            self.scale_dtype,
            self.scale_dtype is None or self.scale_dtype in tuple(SCALE_TYPES),
            f"None or one of {', '.join(SCALE_TYPES)}",
        )
        chosen = [modes.named(name) for name in (self.key_mode, self.value_mode)]
        fitting = [name for name in SCALE_TYPES if any(name in mode.scale_types for mode in chosen)]
        bytes_go_with = [
            mode.name for mode in modes.MODES.values() if mode.stores_codes and FLOAT8.name in mode.scale_types
        ]
        _check(
            "scale_dtype",
            self.scale_dtype,
            self.scale_dtype is None or self.scale_dtype in fitting,
            f"None or one of {', '.join(fitting)}, which go with modes {self.key_mode} of keys or {self.value_mode} of "
            f"values ({FLOAT8.name} goes with modes that have no zero point: {', '.join(sorted(bytes_go_with))})",
        )
        if self.disabled_passes != ():
            object.__setattr__(self, "disabled_passes", _pass_names(self.disabled_passes))

    @staticmethod
    def preset(name: str, **changes: Any) -> InnerQConfig:
        """The named preset, with single fields changed.

        Raises:
            InnerQError: for an unknown preset or field.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise InnerQError(f"preset={name!r} is unknown: allowed are {', '.join(PRESETS)}")
        return InnerQConfig.from_options({**PRESETS[name], **changes})

    @staticmethod
    def from_options(options: Mapping[str, Any]) -> InnerQConfig:
        """A config from a mapping of field names, with ``preset`` as a start (``base`` where it is left out)."""
        options = dict(options)
        if "preset" in options:
            return InnerQConfig.preset(options.pop("preset"), **options)
        unknown = [name for name in options if name not in field_names()]
        if unknown:
            raise InnerQError(
                f"option {unknown[0]!r} is unknown: allowed are preset, {', '.join(field_names())}, "
                "and for torch.compile(options=...) also mode and the options of Inductor"
            )
        return InnerQConfig(**options)

    def format_for(self, role: Role, head_dim: int, dtype: torch.dtype) -> CacheFormat:
        """The cache format of one side of a layer.

        Raises:
            InnerQError: for a dtype, head_dim or group size that the kernels cannot hold.
        """
        if dtype not in CACHE_DTYPES:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in CACHE_DTYPES)
            raise InnerQError(
                f"a {role} cache of dtype {dtype} cannot be quantized: allowed are {allowed}; "
                "convert the model with .to(torch.bfloat16), or compile it with backend='inductor'"
            )
        if head_dim % LANES or not 0 < head_dim <= MAX_HEAD_DIM:
            raise InnerQError(
                f"a {role} cache of head_dim {head_dim} cannot be quantized: allowed are multiples of {LANES} up to "
                f"{MAX_HEAD_DIM}; compile this model with backend='inductor'"
            )
        group_size = self.group_size or default_group_size(role, head_dim)
        if role == "key" and head_dim % group_size:
            divisors = [str(g) for g in GROUP_SIZES if head_dim % g == 0]
            raise InnerQError(
                f"group_size={group_size} does not divide head_dim {head_dim}: allowed here are "
                f"{', '.join(divisors)}; leave group_size out to have it chosen"
            )
        mode, bits = (self.key_mode, self.key_bits) if role == "key" else (self.value_mode, self.value_bits)
        served, scale_dtype = modes.serving(mode, bits, self.scale_dtype, default_scale_dtype(dtype))
        return CacheFormat(
            role=role,
            bits=bits,
            mode=served.name,
            group_size=group_size,
            sink=self.sink,
            recent=self.recent,
            scale_dtype=scale_dtype,
            norm="paper" if role == "key" and self.normalize_keys and self.key_norm == "paper" else "channel",
        )

    @property
    def has_key_statistics(self) -> bool:
        return self.centre_keys or self.normalize_keys


def field_names() -> list[str]:
    return [field.name for field in dataclasses.fields(InnerQConfig)]


def describe(config: InnerQConfig) -> str:
    """A config in few words: the preset that it is closest to, and what differs from it."""

    def changes(preset: str) -> list[str]:
        base = InnerQConfig.preset(preset)
        return [
            f"{name}={getattr(config, name)}" for name in field_names() if getattr(config, name) != getattr(base, name)
        ]

    return ", ".join(min(([preset, *changes(preset)] for preset in PRESETS), key=len))


def _pass_names(names: Any) -> tuple[str, ...]:
    """``disabled_passes``, checked; a single name may stand without brackets."""
    from .passes import PIPELINE  # imports Dynamo, which a config does without otherwise

    optional = [name for name in PIPELINE.names() if name not in PIPELINE.required]
    names = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, (list, tuple, set)) else names
    if not isinstance(names, tuple):
        raise InnerQError(
            f"disabled_passes={names!r} is not allowed: it has to be names of passes, as ('hoist_lengths',)"
        )
    for name in names:
        if name in PIPELINE.required:
            raise InnerQError(
                f"disabled_passes: {name!r} cannot be switched off, because without it a graph with a quantized cache "
                f"cannot run: allowed are {', '.join(optional)}; to compile without any, use backend='inductor'"
            )
        if name not in optional:
            raise InnerQError(f"disabled_passes: there is no pass {name!r}: allowed are {', '.join(optional)}")
    return tuple(name for name in optional if name in names)


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise InnerQError(f"{name}={value!r} is not allowed: it has to be {allowed}")
