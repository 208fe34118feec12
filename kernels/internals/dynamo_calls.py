"""How Dynamo runs what it compiled, counts, and gives up. See ``table/dynamo_calls.py``. Imports Dynamo."""

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
    """How many graphs of one code object Dynamo keeps before it runs what comes next uncompiled."""
    return config.recompile_limit


def accumulated_recompile_limit() -> int:
    """The same for a code object that several modules share, all of them together."""
    return config.accumulated_recompile_limit


def forget_compiled() -> None:
    """Forget all graphs: what is called next is compiled anew."""
    torch._dynamo.reset()


def fix_size(tensor: torch.Tensor, dim: int) -> None:
    """A size of an input is to be a number in the graph, and another graph to be compiled for another size."""
    torch._dynamo.mark_static(tensor, dim)


# --- modules that are compiled ----------------------------------------------------------------------------------------


def compiled_call(module: torch.nn.Module) -> Callable[..., Any] | None:
    """What a module runs when it is called, where ``module.compile()`` has compiled it."""
    return module._compiled_call_impl


def uncompiled_call(module: torch.nn.Module) -> Callable[..., Any]:
    """What a module runs when it is called and nothing has compiled it: its ``forward``, and its hooks."""
    return module._call_impl


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """What a module runs when it is called; None: its ``forward``, uncompiled."""
    module._compiled_call_impl = call


def original(module: OptimizedModule) -> torch.nn.Module:
    """The module that ``torch.compile`` has wrapped."""
    return module._orig_mod


def backend_of(module: OptimizedModule) -> Any:
    """The backend that a wrapped module was compiled with."""
    callback: Any = module.dynamo_ctx.callback
    backend = innermost_backend(callback)
    return getattr(backend, "compiler_fn", backend)


def compiled_form(module: OptimizedModule) -> Callable[..., Any]:
    """A compiled form of the module that is wrapped, its hooks included, which can be set as its compiled call."""
    return module.dynamo_ctx(uncompiled_call(original(module)))
