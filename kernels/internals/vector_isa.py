"""The instruction sets of the CPU, which Inductor checks in every process. See ``table/vector_isa.py``.

Before the first C++ kernel of a process is compiled, or loaded from disk, Inductor loads a small library for each
instruction set, each in a new process that imports torch. That takes several times as long as the import, whatever is
on disk already. A check that ended well is not made again with the same compiler, torch and CPU.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import torch

from .inductor import cache_directory, caches_enabled


def install() -> None:
    """Let checks of instruction sets that ended well be kept next to Inductor's caches. Imports Inductor."""
    try:
        from torch._inductor.cpu_vec_isa import VecISA, _get_isa_dry_compile_fingerprint, x86_isa_checker  # noqa: F401

        check: Any = VecISA.check_build
        _ = VecISA.build_arch_flags
    except (ImportError, AttributeError):  # each process makes them
        return
    if not getattr(check, "_innerq", False):
        setattr(VecISA, "check_build", kept(check))  # noqa: B010  (a function without names of parameters)


def kept(check: Callable[[Any, str], bool]) -> Callable[[Any, str], bool]:
    """``VecISA.check_build``, which builds and loads a library, for a check that is made once for all processes."""

    @functools.wraps(check)
    def check_build(isa: Any, code: str) -> bool:
        mark = _mark(isa, code) if caches_enabled() else None
        if mark is not None and mark.exists():
            return True
        passed = check(isa, code)
        if passed and mark is not None:  # what failed may be mended
            with contextlib.suppress(OSError):
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
        return passed

    setattr(check_build, "_innerq", True)  # noqa: B010  (functions declare no such attribute)
    return check_build


def _mark(isa: Any, code: str) -> pathlib.Path:
    """The file whose presence says that a check has ended well. Its name depends on all that the check does."""
    from torch._inductor.cpu_vec_isa import _get_isa_dry_compile_fingerprint, x86_isa_checker

    compiler = _get_isa_dry_compile_fingerprint(isa.build_arch_flags())  # its version, the flags, torch's version
    library_path = os.environ.get("LD_LIBRARY_PATH", "")
    facts = [str(isa), code, compiler, torch.__file__, platform.machine(), *x86_isa_checker(), library_path]
    return pathlib.Path(cache_directory()) / "innerq_isa" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
