"""Models whose layers are distributed over several devices by accelerate's ``device_map``.

accelerate wraps the ``forward`` of each module in a hook that moves its inputs to the device of the module, and
disables Dynamo in all hooks. That breaks the graph in every linear layer. All these wrappers share one code object, so
that Dynamo's recompile limit is reached after a few blocks, and the blocks that follow run uncompiled with dense
caches. Hooks that only move inputs can be traced, because they only call ``tensor.to(device)``: they are given the
functions without accelerate's ``torch.compiler.disable``, and the model is one graph again.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from typing import Any

import torch

from ..kernels.internals import dynamo_calls

log = logging.getLogger(__name__)

#: How many graphs a module with a graph break may need: prefill and decode, for one sequence and for several.
GRAPHS_PER_BREAK = 4


def limit_is_an_argument() -> bool:
    """Whether ``torch.compile`` has the argument ``recompile_limit``; torch 2.11 has a global setting only."""
    return "recompile_limit" in inspect.signature(torch.compile).parameters


def trace_hooks(model: torch.nn.Module) -> int:
    """Let Dynamo trace those hooks of accelerate that only move inputs.

    Returns:
        How many modules still break the graph: those whose weights are loaded at each call (offloaded to CPU or disk),
        and those with hooks of another class.
    """
    # If accelerate has not been imported, no model has its hooks.
    hooks = sys.modules.get("accelerate.hooks")
    if hooks is None:
        return 0
    breaks = 0
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        if type(hook) is hooks.AlignDevicesHook and not hook.offload:
            hook.__class__ = _traced_class(hooks.AlignDevicesHook)
        elif hook is not None and not isinstance(hook, _traced_class(hooks.AlignDevicesHook)):
            breaks += 1
    limit, setting = dynamo_calls.accumulated_recompile_limit(), "accumulated_recompile_limit"
    if not limit_is_an_argument():
        limit, setting = min((limit, setting), (dynamo_calls.recompile_limit(), "recompile_limit"))
    if breaks * GRAPHS_PER_BREAK > limit:
        log.warning(
            "%d modules have hooks that Dynamo cannot trace, such as those that load offloaded weights: modules beyond "
            "the limit of %d graphs run uncompiled with dense caches; offload fewer modules, or raise "
            "torch._dynamo.config.%s to %d",
            breaks,
            limit,
            setting,
            breaks * GRAPHS_PER_BREAK,
        )
    return breaks


@functools.cache
def _traced_class(cls: type) -> type:
    """A subclass of a hook class whose methods are those without accelerate's ``torch.compiler.disable``."""
    plain = {name: inspect.unwrap(getattr(cls, name)) for name in ("pre_forward", "post_forward")}
    return type(cls.__name__, (cls,), {**plain, "__module__": cls.__module__})
