"""Compile a kernel for a GPU that this machine does not have: for tests of targets, and to read the machine code."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import torch
import triton

from ..internals.triton_compiler import ASTSource, CompiledKernel, GPUTarget, disassembler

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
}


def compile_for(kernel, arguments: dict[str, Any], capability: int = 90, **options) -> CompiledKernel:
    """Compile ``kernel`` for ``sm_<capability>``.

    Args:
        kernel: a ``triton.jit`` function.
        arguments: every parameter by name: a dtype for a pointer, an int, a float, or the value of a constexpr.
            Integers are specialized as at a launch: 1 becomes a constant, multiples of 16 are marked as such. Other
            values of integers do not matter.
        options: ``num_warps``, ``num_stages`` and other launch options of Triton.
    """
    signature, constants, attrs = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, torch.dtype):
            signature[parameter.name] = _POINTERS[value]
            attrs[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attrs[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(kernel, signature, constants, attrs)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options or None)


def sass(compiled: CompiledKernel) -> str:
    """Machine code (SASS) of a compiled kernel, disassembled with the ``nvdisasm`` that is part of Triton."""
    cubin = pathlib.Path("/tmp") / f"{compiled.hash}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    try:
        return subprocess.run(
            [str(disassembler()), "-c", str(cubin)], check=True, capture_output=True, text=True
        ).stdout
    finally:
        cubin.unlink()
