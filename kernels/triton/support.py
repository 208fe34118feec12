"""What the Triton kernels support, answered without importing Triton; and a format as their compile-time constants."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch

from .. import layout
from ..cache import Cache
from ..formats import KERNEL_DTYPES, LANES, MAX_HEAD_DIM, CacheFormat
from .hashing import hash_in_order

#: Scale types that no Triton kernel writes, and only the portable attention kernel reads.
UNWRITTEN_SCALES = ("float8_e5m2",)


@functools.cache
def installed() -> bool:
    """Whether Triton can be imported. Imports nothing."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU. Triton reads this variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_on(x: torch.Tensor) -> bool:
    """Whether Triton runs on ``x``: on a GPU, or on a CPU in the interpreter."""
    return installed() and (x.is_cuda or (x.device.type == "cpu" and interpreted()))


def on_gpu(x: torch.Tensor) -> bool:
    """Whether Triton kernels run on the GPU of ``x``, and not in the interpreter."""
    return installed() and x.is_cuda


def format_supported(fmt: CacheFormat, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether kernels read caches of a format, head_dim and dtype (of the windows)."""
    if dtype not in KERNEL_DTYPES or head_dim % LANES or not LANES <= head_dim <= MAX_HEAD_DIM:
        return False
    if fmt.block > 128 or (fmt.is_key and fmt.block != 32):
        return False
    if not fmt.quantized:
        return True
    along = head_dim if fmt.is_key else fmt.block
    return 2 <= fmt.bits <= 8 and along % fmt.group_size == 0


def writes(fmt: CacheFormat) -> bool:
    """Whether Triton kernels can write the scales of a format, and not only read them."""
    return fmt.scale_dtype not in UNWRITTEN_SCALES


def cache_supported(cache: Cache) -> bool:
    """Whether kernels support a cache side: its format, and its tensors, which have to be contiguous."""
    window = cache.window
    if not format_supported(cache.format, window.shape[-1], window.dtype) or cache.state.dtype != torch.int32:
        return False
    return all(tensor.is_contiguous() for tensor in cache.encoded)


#: Shared memory of a program of the portable kernel for latent attention, with more than 256 channels of values.
LATENT_SHARED = 102_400


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have; as many as it likes in the interpreter."""
    if device.type != "cuda":
        return 1 << 30
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def obstacle(call: Any) -> str:
    """Why no Triton kernel serves a call on its device, though one takes its formats; empty if one does."""
    wide = max(cache.window.shape[3] for cache in (call.keys, call.values)) > 256
    if call.value_query is not None and wide and shared_memory(call.query.device) < LATENT_SHARED:
        return f"latent attention needs {LATENT_SHARED} bytes of shared memory, more than this GPU has"
    return ""


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is not below ``n``, 1 at least."""
    return 1 << max(n - 1, 0).bit_length()


@functools.cache
def side_constants(fmt: CacheFormat, head_dim: int, prefix: str = "") -> dict[str, object]:
    """The compile-time constants of a kernel for a format, with names that begin with ``prefix``.

    ``BITS`` is 0 where there are no codes. ``SLICES`` is the number of slices of 16 lanes that share a word, ``COLS``
    the power-of-two width of a tile of all channels, see ``addresses.tile_channels``.
    """
    slices = layout.word_slices(fmt, head_dim)
    parts = 1 if fmt.is_key else layout.sub_ranges(slices)
    columns = parts * next_power_of_2(head_dim // parts)
    constants = {
        "IS_KEY": fmt.is_key,
        "HAS_ZERO": fmt.has_zero,
        "BITS": fmt.bits if fmt.quantized else 0,
        "GROUP": fmt.group_size,
        "BLOCK": fmt.block,
        "SINK": fmt.sink,
        "RECENT": fmt.recent,
        "D": head_dim,
        "SLICES": slices,
        "COLS": columns,
    }
    return {prefix + name: value for name, value in constants.items()}


def mode_constants(fmt: CacheFormat, prefix: str = "") -> dict[str, object]:
    """The compile-time constants of a mode, for kernels that quantize."""
    from .modes import encoder  # imports Triton, which may not be installed

    function = encoder(fmt)
    hash_in_order(function)
    constants = {
        "ENCODER": function,
        "ROLLS": fmt.rolls,
        "USES_ANCHOR": fmt.quantization.uses_anchor,
        "USES_QUERIES": fmt.uses_queries,
    }
    return {prefix + name: value for name, value in constants.items()}


def launching(x: torch.Tensor, *kernels: Any):
    """A context in which Triton launches kernels on the device of ``x``, which need not be the current device."""
    for kernel in kernels:
        hash_in_order(kernel)
    return torch.cuda.device(x.device) if x.is_cuda else _NoDevice()


class _NoDevice:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *args) -> None:
        return None
