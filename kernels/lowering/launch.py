"""Imported by generated code: Inductor's launcher of a template, with a limit on registers.

Inductor's own decorator passes only warps and stages on to Triton, not ``maxnreg``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..internals import launchers
from ..internals.launchers import LimitedRegisters


def template(*, maxnreg: int, inductor_meta: dict[str, Any], **options: Any) -> Callable[[Any], Any]:
    """``triton_heuristics.template`` for a kernel with at most ``maxnreg`` registers per thread."""
    decorate = launchers.template(inductor_meta={**inductor_meta, "maxnreg": maxnreg}, **options)

    def limit(fn):
        tuner = decorate(fn)
        if type(tuner) is launchers.CachingAutotuner:  # a debugging one is left as it is
            tuner.__class__ = LimitedRegisters
        return tuner

    return limit
