"""Presets: named sets of fields of :class:`~innerq_compile.config.InnerQConfig`."""

from __future__ import annotations

from typing import Any

_QUANTIZED = {"sink": 32, "recent": 96, "centre_keys": True, "normalize_keys": True}
_PAPER = {"sink": 32, "recent": 96, "centre_keys": False, "normalize_keys": True, "key_norm": "paper"}

#: Fields of :class:`InnerQConfig` by preset name. Bits of keys / values: ``base`` 3/3, ``small`` 3/2, ``int4`` 4/4,
#: ``tiny`` 2/2; ``lossless`` does not quantize. ``hybrid`` equals ``small``: it has the bits of the paper's
#: configuration of that name. The presets ``paper_base``, ``paper_small`` and ``paper_hybrid`` are the number formats
#: of InnerQ (arXiv 2602.23200) as published, for comparison.
PRESETS: dict[str, dict[str, Any]] = {
    "base": {"key_bits": 3, "value_bits": 3, "key_mode": "steered", "value_mode": "anchored", **_QUANTIZED},
    "small": {"key_bits": 3, "value_bits": 2, "key_mode": "steered", "value_mode": "anchored", **_QUANTIZED},
    "hybrid": {"key_bits": 3, "value_bits": 2, "key_mode": "steered", "value_mode": "anchored", **_QUANTIZED},
    "int4": {"key_bits": 4, "value_bits": 4, "key_mode": "steered", "value_mode": "anchored", **_QUANTIZED},
    "tiny": {"key_bits": 2, "value_bits": 2, "key_mode": "steered", "value_mode": "anchored", **_QUANTIZED},
    "paper_base": {"key_bits": 3, "value_bits": 3, "key_mode": "symmetric", "value_mode": "symmetric", **_PAPER},
    "paper_small": {"key_bits": 3, "value_bits": 2, "key_mode": "symmetric", "value_mode": "symmetric", **_PAPER},
    "paper_hybrid": {"key_bits": 3, "value_bits": 2, "key_mode": "symmetric", "value_mode": "paper_hybrid", **_PAPER},
    "lossless": {
        "key_bits": 8,
        "value_bits": 8,
        "key_mode": "none",
        "value_mode": "none",
        "sink": 32,
        "recent": 96,
        "centre_keys": False,
        "normalize_keys": False,
    },
}
