"""Running and timing decode steps, and measuring caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Decoder:
    """Runs a model with a cache in the way that transformers' ``generate`` does."""

    def __init__(self, model: Any) -> None:
        self.model, self.position = model, 0
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append ``tokens [B, N]`` and return the logits ``[B, vocab]`` of the last one."""
        positions = torch.arange(self.position, self.position + tokens.shape[1], device=tokens.device)[None]
        out = self.model(
            input_ids=tokens,
            past_key_values=self.cache,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        self.cache, self.position = out.past_key_values, self.position + tokens.shape[1]
        return out.logits[:, -1]

    @property
    def cache_bytes(self) -> int:
        """Bytes of all tensors of the cache, see :func:`cache_bytes`."""
        return cache_bytes(self.cache)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors of a transformers cache, unused capacity included."""
    from ..cache.tensor import InnerQTensor

    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(t.nbytes_held if isinstance(t, InnerQTensor) else t.nbytes for t in tensors)


def synchronize(device: torch.device) -> None:
    """Wait for all work launched on a CUDA device; does nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(call: Callable[[], Any], device: torch.device, steps: int, warmup: int = 3) -> float:
    """The median duration in milliseconds of ``steps`` calls, after ``warmup`` calls that are not measured."""
    times = []
    for index in range(warmup + steps):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        if index >= warmup:
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)
