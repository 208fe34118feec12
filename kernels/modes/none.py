"""``none``: blocks hold the elements themselves. Bits and scales mean nothing then."""

from __future__ import annotations

from .mode import WITHOUT_ZERO, QuantizationMode

MODE = QuantizationMode(name="none", scale_types=WITHOUT_ZERO, encode=None, decode=None)
