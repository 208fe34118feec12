"""``rolling``: the elements themselves, in the recent window alone, for caches that keep the last few tokens only.

Nothing is ever quantized: a token that leaves the recent window is lost. The passes choose it for short sliding
windows (``passes/analysis/windows.py``); it is not a mode of a config.
"""

from __future__ import annotations

from .mode import WITHOUT_ZERO, QuantizationMode

MODE = QuantizationMode(name="rolling", scale_types=WITHOUT_ZERO, encode=None, decode=None, rolls=True)
