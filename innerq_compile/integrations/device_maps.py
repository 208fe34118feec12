"""Models whose layers are distributed over several devices by accelerate's ``device_map``.

accelerate wraps the ``forward`` of each module in a hook that moves its inputs to the device of the module, and
disables Dynamo in all hooks. That breaks the graph in every linear layer, and each piece is compiled for itself. Hooks
that only move inputs can be traced, because they only call ``tensor.to(device)``: they are given the functions without
accelerate's ``torch.compiler.disable``, and the model is one graph again.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import torch


def trace_hooks(model: torch.nn.Module) -> None:
    """Let Dynamo trace those hooks of accelerate that only move inputs.

    Modules whose weights are loaded at each call (offloaded to CPU or disk), and those with hooks of another class,
    still break the graph.
    """
    # If accelerate has not been imported, no model has its hooks.
    hooks = sys.modules.get("accelerate.hooks")
    if hooks is None:
        return
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        if type(hook) is hooks.AlignDevicesHook and not hook.offload:
            hook.__class__ = _traced_class(hooks.AlignDevicesHook)


@functools.cache
def _traced_class(cls: type) -> type:
    """A subclass of a hook class whose methods are those without accelerate's ``torch.compiler.disable``."""
    plain = {name: inspect.unwrap(getattr(cls, name)) for name in ("pre_forward", "post_forward")}
    return type(cls.__name__, (cls,), {**plain, "__module__": cls.__module__})
