"""``none``: blocks hold the elements themselves. Bits and scale type of the format are ignored."""

from __future__ import annotations

from .mode import WITHOUT_ZERO, QuantizationMode

MODE = QuantizationMode(name="none", scale_types=WITHOUT_ZERO, encode=None, decode=None)
