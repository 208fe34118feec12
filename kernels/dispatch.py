"""Which set of kernels serves a call: the one place that chooses.

CUDA tensors go to Triton (``kernels/triton``), CPU tensors to C++ (``kernels/cpu``), and everything that has no kernel
there to plain torch (``kernels/reference``), as does everything under ``INNERQ_KERNELS=reference``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch

from . import cpu, triton
from .attention_call import AttentionCall
from .backend import Kernel, KernelBackend, KernelChoice
from .reference import backend as reference


@functools.cache
def reference_only() -> bool:
    """Whether ``INNERQ_KERNELS=reference`` asks for plain torch everywhere.

    Raises:
        ValueError: where the variable says something that is not known.
    """
    choice = os.environ.get("INNERQ_KERNELS", "all")
    if choice not in ("all", "reference"):
        raise ValueError(f"INNERQ_KERNELS={choice!r} is not allowed: it has to be 'all' or 'reference'")
    return choice == "reference"


def backend_for(device: torch.device) -> KernelBackend:
    """The fastest kernels that there are for tensors of a device."""
    if not reference_only():
        kind = device.type
        if kind == "cuda":
            return triton
        if kind == "cpu" and cpu.available():
            return cpu
    return reference


def choose(device: torch.device, supports: Callable[[KernelBackend], bool]) -> KernelBackend:
    """The kernels that serve a call for tensors of a device: the fastest for which ``supports`` is true of the call."""
    backend = backend_for(device)
    return backend if supports(backend) else reference


def decode_kernel(call: AttentionCall[torch.Tensor]) -> KernelChoice:
    """What serves `decode_attention` for tensors like these. Fake tensors will do."""
    device = call.query.device
    backend = backend_for(device)
    if backend is not reference:
        return backend.decode_kernel(call)
    if reference_only():
        return KernelChoice(Kernel.REFERENCE, "INNERQ_KERNELS=reference")
    if device.type == "cpu":
        return KernelChoice(Kernel.REFERENCE, "no C++ compiler, or INNERQ_CPU_KERNELS=0")
    return KernelChoice(Kernel.REFERENCE, f"there are no kernels for {device.type}")
