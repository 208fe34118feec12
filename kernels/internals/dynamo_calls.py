"""Dynamo's compiled modules, limits, counters and metrics. See ``table/dynamo_calls.py``. Imports Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config
from torch._dynamo.eval_frame import OptimizedModule, innermost_backend
from torch._dynamo.exc import ShortenTraceback
from torch._dynamo.utils import counters, get_compilation_metrics

__all__ = [
    "OptimizedModule",
    "ShortenTraceback",
    "accumulated_recompile_limit",
    "backend_of",
    "compiled_call",
    "compiled_form",
    "counters",
    "fix_size",
    "forget_compiled",
    "get_compilation_metrics",
    "original",
    "recompile_limit",
    "set_compiled_call",
    "uncompiled_call",
]


def recompile_limit() -> int:
    """How many graphs Dynamo compiles for one code object before it runs it uncompiled."""
    return config.recompile_limit


def accumulated_recompile_limit() -> int:
    """The same limit for a code object that several modules share, counted over all of them."""
    return config.accumulated_recompile_limit


def forget_compiled() -> None:
    """Discard all compiled graphs, so that functions are compiled again when they are called."""
    torch._dynamo.reset()


def fix_size(tensor: torch.Tensor, dim: int) -> None:
    """Make a size of an input a constant of the graph; other sizes are compiled separately."""
    torch._dynamo.mark_static(tensor, dim)


# --- compiled modules -------------------------------------------------------------------------------------------------


def compiled_call(module: torch.nn.Module) -> Callable[..., Any] | None:
    """The function that a call of a module runs after ``module.compile()``; None if it is not compiled."""
    return module._compiled_call_impl


def uncompiled_call(module: torch.nn.Module) -> Callable[..., Any]:
    """The function that a call of a module runs without compilation: its ``forward`` and its hooks."""
    return module._call_impl


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """Set the function that a call of a module runs; None for its uncompiled ``forward`` and hooks."""
    module._compiled_call_impl = call


def original(module: OptimizedModule) -> torch.nn.Module:
    """The module that an ``OptimizedModule`` wraps."""
    return module._orig_mod


def backend_of(module: OptimizedModule) -> Any:
    """The backend that an ``OptimizedModule`` was compiled with."""
    callback: Any = module.dynamo_ctx.callback
    backend = innermost_backend(callback)
    return getattr(backend, "compiler_fn", backend)


def compiled_form(module: OptimizedModule) -> Callable[..., Any]:
    """The compiled form of the wrapped module, hooks included, for use as its compiled call."""
    return module.dynamo_ctx(uncompiled_call(original(module)))
