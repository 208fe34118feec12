"""Kernels of equal code have equal hashes, whichever was compiled before: machine code is kept on disk by them."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")

import triton.language as tl

from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.triton import hashing
from innerq_compile.kernels.triton.hashing import hash_in_order
from tests.helpers.scripts import ROOT
from tests.helpers.torchrun import environment

PROGRAM = """
import sys
from innerq_compile.kernels.triton.hashing import hash_in_order
from innerq_compile.kernels.triton import cache_append, cache_prefill, key_moments
from innerq_compile.kernels.triton.modes import steered

kernels = [
    cache_append.append_fwd_kernel, cache_prefill.prefill_fwd_kernel, key_moments.key_moments_kernel, steered.encode
]
for kernel in kernels[:: int(sys.argv[1])]:
    hash_in_order(kernel)
print([kernel.cache_key for kernel in kernels])
"""


def test_the_order_of_kernels_does_not_matter():
    without = {name: value for name, value in environment().items() if name != "TRITON_INTERPRET"}

    def hashes(step: int) -> str:
        command = [sys.executable, "-c", PROGRAM, str(step)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=without, check=True).stdout

    found = hashes(1)
    assert found.count("'") == 8 and found == hashes(-1)


class Function:
    """Stands for a function of Triton."""

    def __init__(self, fn: Any, hashed: list[str]) -> None:
        self.fn, self._hashed = fn, hashed

    @property
    def cache_key(self) -> str:
        self._hashed.append(self.fn.__name__)
        return self.fn.__name__


def test_callees_are_hashed_first_and_once(monkeypatch):
    monkeypatch.setattr(hashing, "_HASHED", {})
    source = "def inner(): pass\ndef middle(): inner(); outer()\ndef outer(): inner(); module.other(); middle()"
    scope: dict[str, Any] = {"module": type(sys)("module")}
    exec(source, scope)
    hashed: list[str] = []
    for name in ("inner", "middle", "outer"):
        scope[name] = Function(scope[name], hashed)
    scope["module"].other = Function(test_callees_are_hashed_first_and_once, hashed)
    hash_in_order(scope["outer"])
    hash_in_order(scope["middle"])
    assert sorted(hashed) == ["inner", "middle", "outer", "test_callees_are_hashed_first_and_once"]
    assert hashed[0] == "inner" and hashed[-1] == "outer"
    hash_in_order(None)  # a mode without an encoder


class Broken(Function):
    @property
    def cache_key(self) -> str:
        raise RuntimeError("it has no source")


def test_what_cannot_be_hashed_is_left_to_triton(monkeypatch):
    monkeypatch.setattr(hashing, "_HASHED", {})
    hash_in_order(Broken(test_the_order_of_kernels_does_not_matter, []))
    assert hashing._HASHED == {}


def test_a_name_is_one_constant_in_all_modules():
    """The hash of a kernel lists constants of the same name in the order of the addresses of their modules."""
    found: dict[str, set[str]] = {}
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, tl.constexpr):
                found.setdefault(name, set()).add(repr(value))
    assert len(found) > 20 and {name for name, values in found.items() if len(values) > 1} == set()
