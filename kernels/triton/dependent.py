"""Programmatic dependent launch: a kernel that the GPU gets ready while the one before it still runs.

A decode step is hundreds of kernels of a few microseconds, one behind another, and between two of them the memory
stands still. Launched this way a kernel's programs take their places as the last of those before it leave theirs. Each
has to wait itself, ``griddepcontrol.wait``, before it reads what others wrote or writes anything at all; what no kernel
writes, such as a weight, may be on its way before.

A program lets the next kernel be launched behind its own wait and not earlier: then whoever has been launched knows
that everything two kernels back is complete, also if it should not wait itself. Inductor's kernels keep to that, too,
but for those that read nothing: a fill waits for nobody, and whoever waits for a fill does not wait for what was before
it. That is why the switch is Inductor's, and off where nobody turns it on.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl


@functools.cache
def supported(device: torch.device) -> bool:
    """Whether a device launches kernels this way: NVIDIA's from Hopper on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait_for_others(PDL: tl.constexpr):
    """Where a kernel launched with ``launch_pdl`` waits for those before it. ``PDL`` is False for any other."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
