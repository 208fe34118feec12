"""CPU kernels: C++, specialized for a pair of formats and compiled with Inductor's toolchain at the first use.

A kernel backend (``kernels/backend.py``). Functions have the results of those of the same name in
``kernels/reference``, codes and scales bit for bit. They call these for tensors that a kernel does not support (views,
mixed dtypes); operations without a kernel here are the reference's.

The files, from the bottom: ``vec.h`` vectors, ``cache.h`` a cache side, ``modes/`` the encoders of modes, ``encode.h``
blocks, ``append.h``, ``prefill.h``, ``decode.h`` attention (on ``contract.h``, ``tokens.h``, ``masks.h``),
``codegen.py`` the constants of a format, ``build.py`` the toolchain, ``compiled.py`` the functions of each format,
``arguments.py`` what they take, ``writing.py`` and ``attention.py`` their calls.

The environment variable ``INNERQ_CPU_KERNELS=0`` disables this backend.
"""

from __future__ import annotations

import functools
import os

from ..reference.backend import (
    key_statistics,
    rewind_,
    row_linear,
    supports_key_statistics,
    supports_rewind,
    supports_row_linear,
)
from . import build
from .attention import decode_attention, decode_attention_lse, decode_kernel, supports_decode
from .compiled import compile_formats
from .writing import append_, prefill, supports_append, supports_prefill

__all__ = [
    "append_",
    "available",
    "compile_formats",
    "decode_attention",
    "decode_attention_lse",
    "decode_kernel",
    "key_statistics",
    "prefill",
    "rewind_",
    "row_linear",
    "supports_append",
    "supports_decode",
    "supports_key_statistics",
    "supports_prefill",
    "supports_rewind",
    "supports_row_linear",
]


@functools.cache
def available() -> bool:
    """Whether the backend can be used: there is a C++ compiler, and it is not disabled."""
    return os.environ.get("INNERQ_CPU_KERNELS", "1") != "0" and build.compiler_found()
