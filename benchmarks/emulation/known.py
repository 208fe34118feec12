"""Formats that are compared with: the product's presets, the paper's, and KIVI-like outer grouping."""

from __future__ import annotations

import torch

from innerq_compile import PRESETS
from innerq_compile.kernels.formats import default_scale_dtype

from .decode import Format
from .quantizers import Side


def preset_format(name: str, **changes) -> Format:
    """A preset of the product as it is for a float32 cache."""
    options = {**PRESETS[name], **changes}

    def side(role: str) -> Side:
        mode, bits = options[f"{role}_mode"], options[f"{role}_bits"]
        key = role == "key" and mode != "none"
        centre = "mean" if key and options["centre_keys"] else None
        power = 0.5 if key and options["normalize_keys"] else 0.0
        group = options.get("group_size") or 32
        scale = options.get("scale_dtype") or default_scale_dtype(torch.float32, mode)
        return Side(mode, bits, group, scale=scale, zero=scale, centre=centre, power=power, product=key)

    return Format(f"preset {name}", side("key"), side("value"), options["sink"], options["recent"])


def paper_formats() -> list[Format]:
    """The authors' formats with the recent window held ("repaired"): float16 scales, keys divided by sqrt(max|k|)."""

    def key(bits):
        return Side("symmetric", bits, power=0.5)

    return [
        Format("paper innerq_base 3/3", key(3), Side("symmetric", 3)),
        Format("paper innerq_small 3/2", key(3), Side("symmetric", 2)),
        Format("paper innerq_hybrid 3/2", key(3), Side("paper_hybrid", 2)),
        Format("paper 4/4 symmetric", key(4), Side("symmetric", 4)),
    ]


def kivi_formats(bits=((2, 2), (3, 2), (3, 3), (4, 4))) -> list[Format]:
    """Keys per channel over 32 tokens, values per token over 32 channels, asymmetric, with the same windows."""
    made = []
    for key_bits, value_bits in bits:
        key, value = (Side("asymmetric", b, along="outer") for b in (key_bits, value_bits))
        made.append(Format(f"kivi-like {key_bits}/{value_bits}", key, value))
    for key_bits, value_bits in ((3, 2), (2, 2)):
        key, value = (Side("asymmetric", b, 64, along="outer") for b in (key_bits, value_bits))
        made.append(Format(f"kivi-like {key_bits}/{value_bits} g64", key, value))
    return made


def known_formats() -> list[Format]:
    presets = [preset_format(name) for name in PRESETS if name != "lossless"]
    return paper_formats() + presets + kivi_formats()
