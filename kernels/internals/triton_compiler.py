"""Triton's compiler, called without a GPU. See ``table/triton_compiler.py``. Imports Triton."""

from __future__ import annotations

import pathlib

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

__all__ = ["ASTSource", "CompiledKernel", "GPUTarget", "disassembler"]


def disassembler() -> pathlib.Path:
    """The path of the ``nvdisasm`` that is part of Triton."""
    return pathlib.Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
