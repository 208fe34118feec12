"""Encoders of the quantization modes in Triton: one file per mode, of the mode's name.

A file defines what its mode names as ``triton_encoder``, a function

    encode(tiles, b_high, b_low, b_anchor, queries, BITS, DTYPE) -> codes, b_scale, b_zero

of a set of groups (``codes.py``): ``tiles`` is a tuple of ``[groups, 8]`` float32, with the groups' extremes
``b_high`` and ``b_low`` ``[groups]``. ``b_anchor [groups]`` is the element that is to lie on a code, in modes that use
an anchor; ``queries`` are ``steer.query_words``, in modes that use them; else they are None. ``DTYPE`` is that of the
tensor of scales.

``codes`` are words ``[groups, 8]`` of the codes of two neighbouring tiles each (``codes.both_halves``). Zero points
mean nothing in modes without, and where an int32 below 2^16 in place of the scale holds both.
"""

from __future__ import annotations

import importlib
from typing import Any

from ...formats import CacheFormat


def encoder(fmt: CacheFormat) -> Any:
    """The encoder for groups of a format, a ``triton.jit`` function; None in the mode without codes."""
    mode = fmt.quantization
    if mode.triton_encoder is None:
        return None
    return getattr(importlib.import_module(f".{mode.name}", __name__), mode.triton_encoder)
