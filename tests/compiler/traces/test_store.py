"""Traces on disk."""

from __future__ import annotations

import pytest
from torch._inductor.utils import fresh_cache

from innerq_compile.compiler.traces import store


@pytest.fixture(autouse=True)
def empty_folder():
    with fresh_cache():
        yield


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


def test_damaged_files_are_left_out():
    store.write(["a"], b"one")
    (store.folder(["a"]) / "x.trace").write_bytes(b"no archive")
    assert list(store.read(["a"])) == [b"one"]
