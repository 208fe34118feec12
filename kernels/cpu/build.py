"""Compiles sources with Inductor's C++ toolchain: its compiler, flags, vector ISA and on-disk cache.

The cache is keyed by the source, which includes the text of all headers (``codegen.source``).
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import sys

from ..internals import inductor, vector_isa

#: Placed after Inductor's flags, which they override. Codes and scales have to be those of the reference, bit for bit,
#: with any configuration: Inductor compiles with ``-fno-signed-zeros``, and the user's configuration may allow
#: ``-ffinite-math-only`` and ``-ffp-contract=fast``.
FLAGS = (
    "-fno-finite-math-only",
    "-fno-unsafe-math-optimizations",
    "-fsigned-zeros",
    "-ffp-contract=off",
    "-w",
)


@functools.cache
def compiler_found() -> bool:
    """Whether a C++ compiler that Inductor would use is on the path. Does not import Inductor or run a compiler."""
    if sys.platform == "win32":  # the templates are written for GCC and Clang
        return False
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


@functools.cache
def lanes() -> int:
    """Floats in a vector of the ISA that Inductor picked: 16, 8 or 4."""
    vector_isa.install()
    width = inductor.vector_bits() // 32
    return 16 if width >= 16 else 8 if width >= 8 else 4


def load(source: str) -> ctypes.CDLL:
    """Compile ``source`` to a library and load it; from Inductor's cache if it was compiled before."""
    return inductor.compile_cpp(source, FLAGS)
