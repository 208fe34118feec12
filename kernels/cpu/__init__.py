"""CPU kernels: C++ that Inductor's toolchain compiles on first use, specialised for a pair of formats.

A set of kernels as ``kernels/backend.py`` says. Each function gives what its namesake in ``kernels/reference`` gives,
codes and scales bit for bit, and leaves the call to it where a tensor is not as a kernel wants it (a view, mixed
dtypes); what has no kernel here is the reference's own.

The files, from the bottom: ``vec.h`` vectors, ``cache.h`` a cache side, ``modes/`` the encoders of modes, ``encode.h``
blocks, ``append.h``, ``prefill.h``, ``decode.h`` attention (on ``contract.h``, ``tokens.h``, ``masks.h``),
``codegen.py`` the constants of a format, ``build.py`` the toolchain, ``compiled.py`` the functions of each format,
``arguments.py`` what they take, ``writing.py`` and ``attention.py`` their calls.

``INNERQ_CPU_KERNELS=0`` in the environment switches all of it off.
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
from .attention import decode_attention, decode_kernel, supports_decode
from .compiled import compile_formats
from .writing import append_, prefill, supports_append, supports_prefill

__all__ = [
    "append_",
    "available",
    "compile_formats",
    "decode_attention",
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
    """Whether the kernels can be used here: a C++ compiler is there, and they are not switched off."""
    return os.environ.get("INNERQ_CPU_KERNELS", "1") != "0" and build.compiler_found()
