"""Chooses the kernel backend for a call.

CUDA tensors use Triton (``kernels/triton``), CPU tensors C++ (``kernels/cpu``). Plain torch (``kernels/reference``)
serves calls that those do not support, such as all of float64, other devices, and everything with
``INNERQ_KERNELS=reference``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator

import torch

from . import cpu, triton
from .attention_call import AttentionCall
from .backend import Kernel, KernelBackend, KernelChoice
from .reference import backend as reference

#: Why an attention in float64 has no faster kernel.
_FLOAT64 = "kernels compute in float32, so plain torch serves float64"


@functools.cache
def reference_only() -> bool:
    """Whether ``INNERQ_KERNELS=reference`` is set, so that plain torch is used everywhere.

    Raises:
        ValueError: if the variable has an unknown value.
    """
    choice = os.environ.get("INNERQ_KERNELS", "all")
    if choice not in ("all", "reference"):
        raise ValueError(f"INNERQ_KERNELS={choice!r} is not allowed: it has to be 'all' or 'reference'")
    return choice == "reference"


class _Own(threading.local):
    """What a thread has chosen."""

    plain = False


_OWN = _Own()


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """A context in which this thread uses plain torch everywhere, as long as other kernels are being compiled."""
    before, _OWN.plain = _OWN.plain, True
    try:
        yield
    finally:
        _OWN.plain = before


def backend_for(device: torch.device) -> KernelBackend:
    """The fastest backend for tensors on a device."""
    if not (_OWN.plain or reference_only()):
        kind = device.type
        if kind == "cuda":
            return triton
        if kind == "cpu" and cpu.available():
            return cpu
    return reference


def choose(device: torch.device, supports: Callable[[KernelBackend], bool]) -> KernelBackend:
    """The backend for a call with tensors on a device: the fastest for which ``supports`` returns True."""
    backend = backend_for(device)
    return backend if supports(backend) else reference


def decode_kernel(call: AttentionCall[torch.Tensor]) -> KernelChoice:
    """The kernel that ``decode_attention`` uses for a call. Its tensors may be fake."""
    device = call.query.device
    backend = backend_for(device)
    if backend is not reference:
        if call.compute_dtype == torch.float64:
            return KernelChoice(Kernel.REFERENCE, _FLOAT64)
        return backend.decode_kernel(call)
    if reference_only():
        return KernelChoice(Kernel.REFERENCE, "INNERQ_KERNELS=reference")
    if device.type == "cpu":
        return KernelChoice(Kernel.REFERENCE, "no C++ compiler, or INNERQ_CPU_KERNELS=0")
    return KernelChoice(Kernel.REFERENCE, f"there are no kernels for {device.type}")
