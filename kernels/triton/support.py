"""What the Triton kernels can take, answered without importing Triton, and the compile-time constants of a format."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from .. import layout
from ..cache import Cache
from ..formats import CacheFormat

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
#: Scale dtypes that only the portable attention reads; the reference writes them.
UNWRITTEN_SCALES = ("float8_e5m2",)


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """True where Triton's interpreter stands in for a GPU. Triton reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_on(x: torch.Tensor) -> bool:
    return installed() and (x.is_cuda or (x.device.type == "cpu" and interpreted()))


def on_gpu(x: torch.Tensor) -> bool:
    """Whether Triton runs on ``x``, and not in the interpreter."""
    return installed() and x.is_cuda


def format_supported(fmt: CacheFormat, head_dim: int, dtype: torch.dtype) -> bool:
    if dtype not in DTYPES or head_dim % 16 or not 16 <= head_dim <= MAX_HEAD_DIM:
        return False
    if fmt.block > 128 or (fmt.is_key and fmt.block != 32):
        return False
    if not fmt.quantized:
        return True
    along = head_dim if fmt.is_key else fmt.block
    return 2 <= fmt.bits <= 8 and along % fmt.group_size == 0


def writes(fmt: CacheFormat) -> bool:
    """Whether a format's scales can be written, and not only read."""
    return fmt.scale_dtype not in UNWRITTEN_SCALES


def cache_supported(cache: Cache) -> bool:
    """A cache side whose tensors are dense, as caches are made: kernels take no strides for them."""
    window = cache.window
    if not format_supported(cache.format, window.shape[-1], window.dtype) or cache.state.dtype != torch.int32:
        return False
    return all(tensor.is_contiguous() for tensor in cache.encoded)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@functools.cache
def side_constants(fmt: CacheFormat, head_dim: int, prefix: str = "") -> dict[str, object]:
    """A format as the compile-time constants of a kernel, their names led by ``prefix``.

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
        "QUERY_ROWS": fmt.window_rows - fmt.window,
    }
    return {prefix + name: value for name, value in constants.items()}


def mode_constants(fmt: CacheFormat, prefix: str = "") -> dict[str, object]:
    """What kernels that quantize have to know of a format's mode, as their compile-time constants."""
    from .modes import encoder  # imports Triton, which this module is asked about before

    constants = {
        "ENCODER": encoder(fmt),
        "USES_ANCHOR": fmt.quantization.uses_anchor,
        "USES_QUERIES": fmt.uses_queries,
    }
    return {prefix + name: value for name, value in constants.items()}


def on_device(x: torch.Tensor):
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else _NoDevice()


class _NoDevice:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *args) -> None:
        return None
