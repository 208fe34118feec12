"""What differs between the Inductors of torch 2.11 to 2.13, asked of the code itself."""

from __future__ import annotations

import inspect
from typing import Any

from torch._inductor import select_algorithm
from torch._inductor.virtualized import V


def size_hint(expr: Any) -> int:
    """A likely value of a size, without a guard. ``optimization_hint`` is the newer name."""
    sizevars = V.graph.sizevars
    hint = getattr(sizevars, "optimization_hint", None) or sizevars.size_hint
    return int(hint(expr))


def selected(result: Any) -> Any:
    """The node in what ``autotune_select_algorithm`` returns: torch 2.12 added the choice to it."""
    return result[0] if isinstance(result, tuple) else result


def template_options() -> dict[str, Any]:
    """``always_freeze_layout`` where templates know it; elsewhere they always do."""
    known = inspect.signature(select_algorithm.TritonTemplate.__init__).parameters
    return {"always_freeze_layout": True} if "always_freeze_layout" in known else {}
