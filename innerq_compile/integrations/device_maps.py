"""Models whose layers lie on several devices, by accelerate's ``device_map``.

accelerate wraps the ``forward`` of every module in a hook that moves its inputs to the module's device, and keeps
Dynamo out of all hooks. Each is a graph break, in every linear layer of every block, and all share the code of one
wrapper: Dynamo's limit of graphs for a code object is reached after a few blocks, and what is called from there on
runs uncompiled, with dense caches. Hooks that only move inputs hold nothing but ``tensor.to(device)``: with their plain
functions the model is one graph again, whose layers lie where they were.
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

#: Graphs that a module may need whose hook breaks the graph: of prefill and decode, and each once more where a size
#: that was taken for a constant turns out not to be one.
GRAPHS_PER_BREAK = 4


def limit_is_an_argument() -> bool:
    """Whether ``torch.compile`` takes a recompile limit for one function; torch 2.11 has the global one only."""
    return "recompile_limit" in inspect.signature(torch.compile).parameters


def trace_hooks(model: torch.nn.Module) -> int:
    """Let Dynamo trace the hooks of accelerate that only move inputs; gives how many modules keep a graph break.

    Those are the modules whose weights are loaded at each call (offload to CPU or disk), and those with hooks of
    another class. Nothing happens where accelerate has not been imported: no model has its hooks then.
    """
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
            "%d modules have hooks that Dynamo does not trace, such as those that load offloaded weights: what is "
            "called behind the limit of %d graphs runs uncompiled, with a dense cache; offload fewer modules, or raise "
            "torch._dynamo.config.%s to %d",
            breaks,
            limit,
            setting,
            breaks * GRAPHS_PER_BREAK,
        )
    return breaks


@functools.cache
def _traced_class(cls: type) -> type:
    """A hook class whose functions are those that accelerate wrapped to keep Dynamo out."""
    plain = {name: inspect.unwrap(getattr(cls, name)) for name in ("pre_forward", "post_forward")}
    return type(cls.__name__, (cls,), {**plain, "__module__": cls.__module__})
