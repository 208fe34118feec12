"""Traces on disk."""

from __future__ import annotations

from pathlib import Path

from innerq_compile.compiler.traces import store
from innerq_compile.kernels.internals import inductor

ROOT = store.root  # tests have another


def test_traces_are_below_the_folder_of_inductor(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert Path(inductor.cache_directory()) == tmp_path
    assert tmp_path in ROOT().parents


def test_what_was_written():
    assert list(store.read(["a"])) == []
    assert store.write(["a"], b"one") and store.write(["a"], b"two") and store.write(["b"], b"three")
    assert set(store.read(["a"])) == {b"one", b"two"}
    assert list(store.read(["b"])) == [b"three"]


def test_the_same_trace_is_kept_once():
    store.write(["a"], b"one")
    store.write(["a"], b"one")
    assert list(store.read(["a"])) == [b"one"]


def test_not_more_than_are_worth_it():
    written = [store.write(["a"], bytes([number])) for number in range(store.MAX_TRACES + 2)]
    assert written == [True] * store.MAX_TRACES + [False] * 2


def test_files_of_others_are_left_out():
    store.write(["a"], b"one")
    (store.folder(["a"]) / "x.tmp").write_bytes(b"half of a trace")
    assert list(store.read(["a"])) == [b"one"]
