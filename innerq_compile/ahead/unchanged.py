"""Runs requests that leave no trace in the model and the process, but what was compiled."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch

from ..runtime.recordings import release_all


@contextlib.contextmanager
def unchanged(target: Any) -> Iterator[None]:
    """Context of requests to ``target``, without gradients and, if it is a module, in evaluation mode.

    Afterwards random number generators, the modules' training flags and the gradient mode are as before. Recorded CUDA
    graphs, which are of use to the caches of these requests only, are released, and so is memory that is free now.
    """
    modules = list(target.modules()) if isinstance(target, torch.nn.Module) else []
    training = [module.training for module in modules]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    try:
        for module in modules:
            module.training = False
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
        release_all()
        gc.collect()
        if devices:
            torch.cuda.empty_cache()
