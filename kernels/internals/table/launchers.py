"""Undocumented API that ``internals/launchers.py`` uses."""

from __future__ import annotations

from .entry import Internal

_UNBOUNDED = "No lowering is registered: the operators stay calls, and nothing is fused with them."

ENTRIES = (
    Internal(
        module="torch._inductor.runtime.triton_heuristics",
        names=("template(inductor_meta)", "CachingAutotuner", "CachingAutotuner._create_compile_options"),
        needs="triton",
        why="Inductor's launcher passes warps and stages to Triton, but no register limit. The attention kernel needs "
        "one: with more registers per thread, fewer of its programs run concurrently.",
        without=_UNBOUNDED,
    ),
)
