"""Inductor's launcher of generated Triton kernels. See ``table/launchers.py``. Generated code imports this module."""

from __future__ import annotations

from torch._inductor.runtime.triton_heuristics import CachingAutotuner, template

__all__ = ["CachingAutotuner", "template"]
