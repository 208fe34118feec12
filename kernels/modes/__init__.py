"""Quantization modes by name: the one list of them.

A mode is a file in this folder that defines its object, ``MODE``, and files of the same name with its encoders in
``triton/modes`` and ``cpu/modes``. All other code asks the object for a mode's properties, and compares no names.
"""

from __future__ import annotations

from . import anchored, asymmetric, hybrid, none, paper_hybrid, rolling, signed, steered, symmetric
from .mode import QuantizationMode, Role

__all__ = ["MODES", "QuantizationMode", "Role", "named", "names_of", "serving"]

#: All modes, by name, in the order in which messages and the documentation list them.
MODES: dict[str, QuantizationMode] = {
    module.MODE.name: module.MODE
    for module in (symmetric, signed, asymmetric, anchored, steered, hybrid, paper_hybrid, none, rolling)
}


def named(name: str) -> QuantizationMode:
    """The mode of this name.

    Raises:
        ValueError: if there is no such mode; the message lists all names.
    """
    try:
        return MODES[name]
    except KeyError:
        raise ValueError(f"there is no quantization mode {name!r}: allowed are {', '.join(MODES)}") from None


def names_of(role: Role) -> tuple[str, ...]:
    """Names of the modes that a config may ask for, for keys (``role`` "key") or values."""
    return tuple(name for name, mode in MODES.items() if role in mode.roles and not mode.rolls)


def serving(name: str, bits: int, scale_type: str | None, default: str) -> tuple[QuantizationMode, str]:
    """The mode and the scale type that a cache gets where a config asks for mode ``name``.

    Args:
        name: the mode that is asked for. Its fallback takes its place where it does not support the bits or scales.
        bits: bits of a code.
        scale_type: the scale type that is asked for, or None. One that neither the mode nor its fallback supports is
            meant for the other side of the cache, and ignored.
        default: the default scale type of modes that do not support ``pair8``.

    Returns:
        The mode, and the name of its scale type.
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
    """The scale type of a mode where the config gives none: ``pair8`` if the mode supports it, else ``default``."""
    return "pair8" if "pair8" in mode.scale_types else default
