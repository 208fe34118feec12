"""Compiled code in Dynamo: counters, compiled modules. See ``table/dynamo_calls.py``. Imports Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule, innermost_backend
from torch._dynamo.exc import RestartAnalysis, ShortenTraceback
from torch._dynamo.utils import counters, get_compilation_metrics

__all__ = [
    "OptimizedModule",
    "RestartAnalysis",
    "ShortenTraceback",
    "backend_of",
    "compiled_call",
    "compiled_form",
    "counters",
    "fix_size",
    "forget_compiled",
    "get_compilation_metrics",
    "original",
    "set_compiled_call",
    "uncompiled_call",
]


def forget_compiled() -> None:
    """Discard all compiled code of Dynamo."""
    torch._dynamo.reset()


def fix_size(tensor: torch.Tensor, dim: int) -> None:
    """Make a size of an input a constant of the graph, so that another size is compiled again."""
    torch._dynamo.mark_static(tensor, dim)


# --- modules that are compiled ----------------------------------------------------------------------------------------


def compiled_call(module: torch.nn.Module) -> Callable[..., Any] | None:
    """The function that a call of the module runs if ``module.compile()`` has compiled it, else None."""
    return module._compiled_call_impl


def uncompiled_call(module: torch.nn.Module) -> Callable[..., Any]:
    """The function that a call of the uncompiled module runs: its ``forward`` and its hooks."""
    return module._call_impl


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """Set the function that a call of the module runs; None: its ``forward`` and hooks, uncompiled."""
    vars(module)["_compiled_call_impl"] = call  # a class may set attributes in a way of its own


def original(module: OptimizedModule) -> torch.nn.Module:
    """The module that ``torch.compile`` wrapped."""
    return module._orig_mod


def backend_of(module: OptimizedModule) -> Any:
    """The backend that was passed to ``torch.compile`` for this module."""
    callback: Any = module.dynamo_ctx.callback
    backend = innermost_backend(callback)
    return getattr(backend, "compiler_fn", backend)


def compiled_form(module: OptimizedModule, model: torch.nn.Module) -> Callable[..., Any]:
    """A function for ``model``, hooks included, that is compiled as ``module`` is, for :func:`set_compiled_call`."""
    return module.dynamo_ctx(uncompiled_call(model))
