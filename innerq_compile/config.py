"""The user-facing configuration: :class:`InnerQConfig`.

A config is frozen and validated at construction, so that a wrong value raises where it was written. Values that depend
on the model (dtype, head_dim) are resolved later, by :meth:`InnerQConfig.format_for`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from .errors import InnerQError
from .kernels import modes
from .kernels.channels import held_head_dim
from .kernels.formats import (
    GROUP_SIZES,
    MAX_HEAD_DIM,
    ROLES,
    CacheFormat,
    default_group_size,
    default_scale_dtype,
    obstacle,
)
from .kernels.modes import Role
from .kernels.scale_types import FLOAT8, SCALE_TYPES
from .presets import PRESETS

#: Least bits of the rotary key of a latent attention, unless it is stored as it is. It is a small part of the cache,
#: and all heads of the query read it.
ROTARY_BITS = 8

#: Allowed values of ``InnerQConfig.key_norm``.
KEY_NORMS = ("pair", "channel", "paper")


@dataclasses.dataclass(frozen=True)
class InnerQConfig:
    """How caches are quantized, and how the graphs that use them run.

    Immutable; use ``dataclasses.replace`` to change a field.

    Attributes:
        key_bits: Bits of a key code, 2 to 8. Ignored by mode ``none``.
        value_bits: Bits of a value code, 2 to 8. Ignored by mode ``none``.
        key_mode: How a group of keys is coded, see ``docs/formats.md``. One of

            - ``symmetric``: a scale; 2^bits - 1 levels around zero, as published.
            - ``signed``: a scale; all 2^bits levels. The sign of the scale puts the extra level on the side of the
              element of largest magnitude.
            - ``asymmetric``: a scale and a zero point; levels from the smallest element of the group to the largest.
            - ``steered`` (keys only): asymmetric, with the zero point that gives the least error in the attention
              scores of the prompt's queries. ``hybrid`` is used instead for 6 bits or more, and for a ``scale_dtype``
              other than ``pair8``.
            - ``hybrid``: signed or asymmetric for each group, whichever has the smaller squared error.
            - ``paper_hybrid``: symmetric, or asymmetric with one bit less, for each group, as published.
            - ``none``: elements are stored as they are, in the dtype of the cache.
        value_mode: How a group of values is coded: as ``key_mode``, but instead of ``steered``

            - ``anchored`` (values only): asymmetric, with the zero point shifted so that the token of smallest norm in
              each group lies exactly on a level. ``hybrid`` is used instead for 6 bits or more in ``pair8`` words,
              whose zero points are too coarse for it.
        group_size: Number of elements that share a scale: 16, 32, 64 or 128. By default (None) 32, or 16 for keys whose
            head_dim is not a multiple of 32.
        sink: Number of tokens at the start of each sequence that stay in full precision.
        recent: Least number of tokens at the end of each sequence that stay in full precision.
        centre_keys: Whether to subtract each channel's mean over the prompt from the keys. Softmax is invariant to it:
            it shifts all scores of a query by the same amount.
        normalize_keys: Whether to divide each key channel by a norm, the square root of its largest magnitude in the
            prompt, and to multiply the query by it.
        key_norm: How that norm is computed. One of

            - ``channel``: for each channel by itself, applied after the rotary embedding.
            - ``pair``: one norm for the two channels of a rotary pair, where the rotary embedding is recognized, so
              that it can be folded into the query and key projections.
            - ``paper``: as ``channel``, without limits on its size, as published.
        scale_dtype: How scales are stored. One of

            - ``float16``, ``bfloat16``, ``float32``.
            - ``float8_e5m2``: for modes without a zero point.
            - ``pair8``: scale and zero point of a group together in a 16-bit word, for modes with a zero point.

            By default (None), and for the side of the cache whose mode does not allow the given one: ``pair8`` for
            modes with a zero point; otherwise float16 for float16 caches, and bfloat16 for others. Scales beyond the
            range of their dtype saturate.
        strict: Whether an attention that cannot be rewritten is an error. By default it is left as it is.
        rewrite: If False, caches are quantized but the program's own attention reads them dequantized. Slow; use it to
            tell an error of quantization from one of the rewrite (``docs/debugging.md``).
        regions: Whether parts of a graph that do the same, such as layers, are compiled once and called for each
            (``passes/regions``). If False, Inductor compiles each graph as a whole, which takes longer.
        compile_prompt_first: Whether the graph of a prompt is compiled before it runs. If not, the first prompt runs
            operation by operation, and its graph is compiled with that of the decode steps, or before the next prompt.
            By default (None) that is so on a CUDA device, for prompts of up to 16,384 tokens, unless an earlier process
            has compiled the graph: the first token comes seconds earlier.
        cuda_graphs: Whether decode steps on a CUDA device are recorded as CUDA graphs, which are replayed in later
            steps, of any length. A graph that cannot be recorded runs kernel by kernel, and ``explain`` shows the
            reason. If False, nothing is recorded, whatever ``mode`` says; Inductor's option ``triton.cudagraphs=False``
            has the same effect. If ``mode`` or ``triton.cudagraphs=True`` ask for CUDA graphs, Inductor may record
            what cannot be recorded here.
        disabled_passes: Names of compiler passes to switch off, see ``passes/__init__.py``.

    Raises:
        InnerQError: If a value is not allowed; the message lists the allowed ones.

    Example:
        >>> config = InnerQConfig.preset("base", recent=128)
        >>> model = innerq(model, config)
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
    regions: bool = True
    compile_prompt_first: bool | None = None
    cuda_graphs: bool = True
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
        for name in ("centre_keys", "normalize_keys", "strict", "rewrite", "regions", "cuda_graphs"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")
        first = self.compile_prompt_first
        _check("compile_prompt_first", first, first is None or isinstance(first, bool), "None, True or False")
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
        """The config of a preset, with some fields changed.

        Args:
            name: A key of :data:`PRESETS`.
            **changes: Fields of the config that replace those of the preset.

        Raises:
            InnerQError: If the preset or a field is unknown, or a value is not allowed.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise InnerQError(f"preset={name!r} is unknown: allowed are {', '.join(PRESETS)}")
        return InnerQConfig.from_options({**PRESETS[name], **changes})

    @staticmethod
    def from_options(options: Mapping[str, Any]) -> InnerQConfig:
        """The config for a mapping of options.

        Args:
            options: Fields of the config, and optionally ``preset``, whose fields they replace.

        Raises:
            InnerQError: If a preset or field is unknown, or a value is not allowed.
        """
        options = dict(options)
        if "preset" in options:
            return InnerQConfig.preset(options.pop("preset"), **options)
        unknown = [name for name in options if name not in field_names()]
        if unknown:
            raise InnerQError(
                f"option {unknown[0]!r} is unknown: allowed are preset, {', '.join(field_names())}, "
                "and for innerq() and torch.compile(options=...) also mode and the options of Inductor"
            )
        return InnerQConfig(**options)

    def format_for(self, role: Role, head_dim: int, dtype: torch.dtype, *, latent: bool = False) -> CacheFormat:
        """The cache format of the keys or the values of a layer.

        Args:
            role: ``"key"`` or ``"value"``.
            head_dim: Elements of a head, 1 to 576; 0 for the rotary key of a latent layer that has none.
            dtype: The dtype before quantization: float16, bfloat16, float32 or float64.
            latent: Whether it is of a latent attention (MLA): its rotary key has the role ``"key"``, its latent the
                role ``"value"``.

        Raises:
            InnerQError: If the kernels do not support the dtype, the head_dim or the group size.
        """
        if reason := obstacle(role, head_dim, dtype, latent=latent):
            raise InnerQError(f"{reason}; compile this model with backend='inductor'")
        mode, bits = (self.key_mode, self.key_bits) if role == "key" else (self.value_mode, self.value_bits)
        if latent and role == "key":
            bits = max(bits, ROTARY_BITS)
        elif latent:  # keys are computed from it, too
            bits = max(bits, self.key_bits)
            mode = self.key_mode if not modes.named(self.key_mode).stores_codes else mode
        served, scale_dtype = modes.serving(mode, bits, self.scale_dtype, default_scale_dtype(dtype))
        held = held_head_dim(head_dim, served.stores_codes)
        group_size = self.group_size or default_group_size(role, held)
        if role == "key" and held > head_dim:
            held = min(-(-held // group_size) * group_size, MAX_HEAD_DIM)
        if role == "key" and held % group_size:
            divisors = [str(g) for g in GROUP_SIZES if held % g == 0]
            wider = "" if held == head_dim else f", which is held as {held}"
            raise InnerQError(
                f"group_size={group_size} does not divide head_dim {head_dim}{wider}: allowed here are "
                f"{', '.join(divisors)}; leave group_size out to have it chosen automatically"
            )
        return CacheFormat(
            role=role,
            bits=bits,
            mode=served.name,
            group_size=group_size,
            sink=self.sink,
            recent=self.recent,
            scale_dtype=scale_dtype,
            norm="paper" if role == "key" and self.normalize_keys and self.key_norm == "paper" else "channel",
            zeros=held - head_dim,
        )

    @property
    def has_key_statistics(self) -> bool:
        """Whether keys are centred or normalized, so that their mean and norm have to be computed."""
        return self.centre_keys or self.normalize_keys


def field_names() -> list[str]:
    """Names of the fields of :class:`InnerQConfig`."""
    return [field.name for field in dataclasses.fields(InnerQConfig)]


def describe(config: InnerQConfig) -> str:
    """A config in short: the closest preset and the fields that differ from it, as ``"base, recent=128"``."""

    def changes(preset: str) -> list[str]:
        base = InnerQConfig.preset(preset)
        return [
            f"{name}={getattr(config, name)}" for name in field_names() if getattr(config, name) != getattr(base, name)
        ]

    return ", ".join(min(([preset, *changes(preset)] for preset in PRESETS), key=len))


def _pass_names(names: Any) -> tuple[str, ...]:
    """``disabled_passes`` validated, as a tuple in pipeline order. Accepts a single name, too."""
    from .passes import PIPELINE  # here, because it imports Dynamo, which a config does not need otherwise

    optional = [name for name in PIPELINE.names() if name not in PIPELINE.required]
    names = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, (list, tuple, set)) else names
    if not isinstance(names, tuple):
        raise InnerQError(
            f"disabled_passes={names!r} is not allowed: it has to be a tuple of pass names, as ('hoist_lengths',)"
        )
    for name in names:
        if name in PIPELINE.required:
            raise InnerQError(
                f"disabled_passes: {name!r} cannot be switched off, because a graph with a quantized cache cannot run "
                f"without it: allowed are {', '.join(optional)}; to compile without passes, use backend='inductor'"
            )
        if name not in optional:
            raise InnerQError(f"disabled_passes: {name!r} is not a pass: allowed are {', '.join(optional)}")
    return tuple(name for name in optional if name in names)


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise InnerQError(f"{name}={value!r} is not allowed: it has to be {allowed}")
