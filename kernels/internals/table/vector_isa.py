"""Undocumented API that ``internals/vector_isa.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._inductor.cpu_vec_isa",
        names=("VecISA.check_build", "VecISA.build_arch_flags", "_get_isa_dry_compile_fingerprint", "x86_isa_checker"),
        why="The check of an instruction set is replaced by one that is made once for all processes.",
        without="Each process that runs a C++ kernel of Inductor's imports torch several times over, in new processes.",
    ),
)
