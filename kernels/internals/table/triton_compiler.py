"""Undocumented API that ``internals/triton_compiler.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="triton.compiler",
        names=("ASTSource", "CompiledKernel"),
        needs="triton",
        why="Compiles a kernel without a GPU: for tests, and for reading machine code.",
        without="Those tests cannot run.",
    ),
    Internal(
        module="triton.backends.compiler",
        names=("GPUTarget",),
        needs="triton",
        why="The GPU to compile for.",
        without="Those tests cannot run.",
    ),
)
