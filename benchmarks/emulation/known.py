"""The formats that are measured by name: the presets, those of the paper, and KIVI-like outer grouping."""

from __future__ import annotations

from innerq_compile import PRESETS, InnerQConfig

from .decode import Format
from .product import ProductSide
from .quantizers import Side


def preset_format(name: str, **changes) -> Format:
    """A preset, with some options changed."""
    config = InnerQConfig.preset(name, **changes)
    return Format(f"preset {name}", ProductSide(config, "key"), ProductSide(config, "value"))


def paper_formats() -> list[Format]:
    """The authors' formats with a recent window that never runs empty: float16 scales, keys divided by sqrt(max|k|)."""

    def key(bits):
        return Side("symmetric", bits, power=0.5)

    return [
        Format("paper innerq_base 3/3", key(3), Side("symmetric", 3)),
        Format("paper innerq_small 3/2", key(3), Side("symmetric", 2)),
        Format("paper innerq_hybrid 3/2", key(3), Side("paper_hybrid", 2)),
        Format("paper 4/4 symmetric", key(4), Side("symmetric", 4)),
    ]


def kivi_formats() -> list[Format]:
    """Keys per channel over 32 or 64 tokens, values per token over as many channels, asymmetric, the same windows."""
    made = []
    for group in (32, 64):
        for bits in ((2, 2), (3, 2), (3, 3), (4, 4)):
            key, value = (Side("asymmetric", b, group, along="outer") for b in bits)
            made.append(Format(f"kivi-like {bits[0]}/{bits[1]} g{group}", key, value))
    return made


def preset_formats() -> list[Format]:
    """All presets that quantize."""
    configs = {name: InnerQConfig.preset(name) for name in PRESETS}
    return [preset_format(n) for n, c in configs.items() if (c.key_mode, c.value_mode) != ("none", "none")]


def known_formats() -> list[Format]:
    return paper_formats() + preset_formats() + kivi_formats()
