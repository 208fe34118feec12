"""Programmatic dependent launch: a kernel is launched while the kernel before it is still running.

A decode step is a sequence of hundreds of kernels of a few microseconds, and memory is idle between two of them. With
programmatic dependent launch, programs of a kernel are scheduled as soon as those of the previous kernel exit. Each
program has to execute ``griddepcontrol.wait`` before it reads what other kernels have written, and before it writes
anything. Loads of what no kernel writes, such as a weight, may be issued earlier.

A program allows the launch of the next kernel only after its own wait. So when a kernel starts, the kernel two before
it is complete, even if it does not wait itself. Inductor's kernels do the same, with one exception: kernels without
inputs, such as a fill, do not wait, and a kernel that waits for a fill does not wait for the kernels before the fill.
That is why this follows Inductor's option ``triton.enable_pdl``, which is off by default.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl


@functools.cache
def supported(device: torch.device) -> bool:
    """Whether a device supports it: NVIDIA GPUs from Hopper on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait_for_others(PDL: tl.constexpr):
    """Wait for previous kernels, then allow the next. ``PDL``: whether this one is launched with ``launch_pdl``."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
