"""Compiles sources with Inductor's C++ toolchain: its compiler, flags, vector ISA and on-disk cache.

Inductor keys that cache by the source, which is complete: the headers stand in it (``codegen.source``).
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import sys

from ..internals import inductor

#: Behind Inductor's flags, so that they win. It compiles with ``-fno-finite-math-only`` (NaN and infinity are honoured)
#: and ``-ffp-contract=off`` unless the user's configuration says otherwise, and with ``-fno-signed-zeros``; codes and
#: scales are to be the reference's bit for bit whatever the configuration is.
FLAGS = (
    "-fno-finite-math-only",
    "-fno-unsafe-math-optimizations",
    "-fsigned-zeros",
    "-ffp-contract=off",
    "-w",
)


@functools.cache
def compiler_found() -> bool:
    """Whether a C++ compiler that Inductor would use is on the path. Imports and runs nothing."""
    if sys.platform == "win32":  # the templates are written for GCC and Clang
        return False
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


@functools.cache
def lanes() -> int:
    """Floats in a vector of the ISA that Inductor picked: 16, 8 or 4."""
    width = inductor.vector_bits() // 32
    return 16 if width >= 16 else 8 if width >= 8 else 4


def load(source: str) -> ctypes.CDLL:
    """The library that ``source`` compiles to, from Inductor's cache if it was compiled before."""
    return inductor.compile_cpp(source, FLAGS)
