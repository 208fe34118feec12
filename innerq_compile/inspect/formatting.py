"""Formatting of reports for explanations and HTML pages."""

from __future__ import annotations

from ..kernels.formats import CacheFormat
from ..runtime.report import LayerReport


def bits(report: LayerReport) -> str:
    """The formats of keys and values in short, as ``"3 steered / 3 anchored"``; ``exact`` for mode ``none``."""
    sides = [CacheFormat.parse(spec) for spec in (report.key, report.value)]
    return " / ".join(f"{side.bits} {side.mode}" if side.quantized else "exact" for side in sides)


def text_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table with left-aligned columns. Columns without any content are left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[header[i] for i in kept], *([row[i] for i in kept] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
