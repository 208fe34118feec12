"""Inductor's launcher of generated Triton kernels. See ``table/launchers.py``. Generated code imports this module."""

from __future__ import annotations

from typing import Any

from torch._inductor.runtime.triton_heuristics import CachingAutotuner, template

__all__ = ["CachingAutotuner", "LimitedRegisters", "template"]


class LimitedRegisters(CachingAutotuner):
    """Compiles a kernel with at most ``inductor_meta["maxnreg"]`` registers per thread."""

    def _create_compile_options(self, cfg: Any, compile_meta: Any) -> dict[str, Any]:
        return {**super()._create_compile_options(cfg, compile_meta), "maxnreg": self.inductor_meta["maxnreg"]}
