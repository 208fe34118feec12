"""Quantization modes by name: the one list of them.

A mode is a file in this folder with its object, ``MODE``, and its encoders under the same name in ``triton/modes`` and
``cpu/modes``. Everything else asks the object, and never compares a name.
"""

from __future__ import annotations

from . import anchored, asymmetric, hybrid, none, paper_hybrid, signed, steered, symmetric
from .mode import QuantizationMode, Role

__all__ = ["MODES", "QuantizationMode", "Role", "named", "names_of", "serving"]

#: All modes, by name, in the order in which messages and the documentation name them.
MODES: dict[str, QuantizationMode] = {
    module.MODE.name: module.MODE
    for module in (symmetric, signed, asymmetric, anchored, steered, hybrid, paper_hybrid, none)
}


def named(name: str) -> QuantizationMode:
    """The mode of this name.

    Raises:
        ValueError: where there is none; the message names those that there are.
    """
    try:
        return MODES[name]
    except KeyError:
        raise ValueError(f"there is no quantization mode {name!r}: allowed are {', '.join(MODES)}") from None


def names_of(role: Role) -> tuple[str, ...]:
    """Names of the modes that a side of this role may have."""
    return tuple(name for name, mode in MODES.items() if role in mode.roles)


def serving(name: str, bits: int, scale_type: str | None, default: str) -> tuple[QuantizationMode, str]:
    """The mode that serves where a config asks for mode ``name``, and the scale type that it has.

    Args:
        name: of the mode that is asked for.
        bits: of a code.
        scale_type: that is asked for, None for the default. One that goes with neither the mode nor its fallback is
            meant for the other side of the cache, and is the default here.
        default: the scale type of a mode that has no word for scale and zero point together, ``pair8``.
    """
    mode = named(name)
    fallback = named(mode.fallback) if mode.fallback else mode
    if scale_type in fallback.scale_types and scale_type not in mode.scale_types:
        mode = fallback
    if scale_type not in mode.scale_types:
        scale_type = default_scale_type(mode, default)
    assert scale_type is not None
    return (mode if mode.serves(bits, scale_type) else fallback), scale_type


def default_scale_type(mode: QuantizationMode, default: str) -> str:
    """The scale type of a mode whose config names none: 16 bits a group, in a word with the zero point where there is
    one; ``default`` in other modes."""
    return "pair8" if "pair8" in mode.scale_types else default
