"""Traces on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from innerq_compile.compiler import traces
from innerq_compile.compiler.traces import store
from innerq_compile.kernels.internals import inductor

ROOT = store.root  # tests have another


def test_traces_are_below_the_folder_of_inductor(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert Path(inductor.cache_directory()) == tmp_path
    assert tmp_path in ROOT().parents


def traces_of(*key: str) -> list[bytes]:
    return [data for _, data in store.read(key)]


def age(*key: str) -> None:
    """All traces of a key become older, in the order in which they were written."""
    for file, _ in store.read(key):
        before = file.stat().st_mtime_ns
        os.utime(file, ns=(before - 10**9, before - 10**9))


def test_what_was_written():
    assert traces_of("a") == []
    assert store.write(["a"], b"one") and store.write(["a"], b"two") and store.write(["b"], b"three")
    assert set(traces_of("a")) == {b"one", b"two"}
    assert traces_of("b") == [b"three"]


def test_the_same_trace_is_kept_once():
    store.write(["a"], b"one")
    store.write(["a"], b"one")
    assert traces_of("a") == [b"one"]


def test_the_oldest_makes_room():
    for number in range(store.MAX_TRACES + 2):
        assert store.write(["a"], bytes([number]))
        age("a")
    assert traces_of("a") == [bytes([number]) for number in range(store.MAX_TRACES + 1, 1, -1)]


def test_one_that_is_used_stays(monkeypatch):
    monkeypatch.setattr(store, "MAX_TRACES", 2)
    for trace in (b"one", b"two"):
        store.write(["a"], trace)
        age("a")
    store.used(next(file for file, data in store.read(["a"]) if data == b"one"))
    store.write(["a"], b"three")
    assert set(traces_of("a")) == {b"one", b"three"}


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 2), ("MAX_BYTES", 6)])
def test_the_folder_does_not_grow_without_end(limit, value, monkeypatch):
    monkeypatch.setattr(store, limit, value)
    for name in "abcd":
        store.write([name], b"xxx")
        for earlier in "abcd":
            age(earlier)
    assert [name for name in "abcd" if traces_of(name)] == ["c", "d"]
    assert len(list(store.root().iterdir())) == 2  # no empty folders
    store.write(["e"], b"x" * 10)
    assert traces_of("e") == [b"x" * 10]


def test_nothing_is_left_behind_where_writing_fails(monkeypatch):
    def fail(*paths):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert not store.write(["a"], b"one")
    assert list(store.folder(["a"]).iterdir()) == []


def test_a_folder_that_cannot_be_made(monkeypatch):
    def fail():
        raise PermissionError

    monkeypatch.setattr(store, "root", fail)
    assert not store.write(["a"], b"one")
    assert traces_of("a") == []
    assert traces.folder() is None
    assert traces.why_off() is not None


def test_files_of_others_are_left_out():
    store.write(["a"], b"one")
    (store.folder(["a"]) / "x.tmp").write_bytes(b"half of a trace")
    assert traces_of("a") == [b"one"]
