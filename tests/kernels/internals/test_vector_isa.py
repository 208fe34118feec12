"""A check of an instruction set is made once for all processes, unless something differs."""

from __future__ import annotations

import pytest
from torch._inductor import config, cpu_vec_isa

from innerq_compile.kernels.internals import vector_isa


class Isa:
    def __init__(self, flags: str = "-mavx2") -> None:
        self.flags = flags

    def __str__(self) -> str:
        return "avx2"

    def build_arch_flags(self) -> str:
        return self.flags


@pytest.fixture
def checks(tmp_path, monkeypatch):
    """The checks that were made, and a function that makes one as a new process does."""
    monkeypatch.setattr(vector_isa, "cache_directory", lambda: str(tmp_path))
    made: list[str] = []

    def check(flags: str = "-mavx2", code: str = "int x;", passes: bool = True) -> bool:
        def build(isa, code: str) -> bool:
            made.append(isa.build_arch_flags())
            return passes

        return vector_isa.kept(build)(Isa(flags), code)

    return made, check


def test_a_check_that_passed_is_made_once(checks):
    made, check = checks
    assert check() and check()
    assert len(made) == 1


def test_a_check_that_failed_is_made_again(checks):
    made, check = checks
    assert not check(passes=False)
    assert check() and check()
    assert len(made) == 2


@pytest.mark.parametrize("difference", ["flags", "code", "fingerprint", "CPU", "libraries"])
def test_what_differs_is_checked(difference, checks, monkeypatch):
    made, check = checks
    assert check()
    options = {}
    if difference == "fingerprint":  # another compiler, or another torch
        monkeypatch.setattr(cpu_vec_isa, "_get_isa_dry_compile_fingerprint", lambda flags: f"another {flags}")
    elif difference == "CPU":
        monkeypatch.setattr(cpu_vec_isa, "x86_isa_checker", lambda: ["avx512"])
    elif difference == "libraries":
        monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    else:
        options = {difference: "another"}
    assert check(**options) and check(**options)
    assert len(made) == 2


def test_nothing_is_kept_without_caches(checks, tmp_path):
    made, check = checks
    with config.patch(force_disable_caches=True):
        assert check() and check()
    assert len(made) == 2 and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(checks, tmp_path, monkeypatch):
    made, check = checks
    (tmp_path / "file").touch()
    monkeypatch.setattr(vector_isa, "cache_directory", lambda: str(tmp_path / "file"))
    assert check() and check()
    assert len(made) == 2


def test_it_takes_inductors_place_once(monkeypatch):
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda isa, code: True)
    vector_isa.install()
    found = cpu_vec_isa.VecISA.check_build
    vector_isa.install()
    assert cpu_vec_isa.VecISA.check_build is found and found._innerq
