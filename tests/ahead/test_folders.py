"""Folders of compiled code: which they are, and what came since an earlier look."""

from __future__ import annotations

import pytest

from innerq_compile.ahead.folders import cache_folders, since


@pytest.fixture
def folders(tmp_path, monkeypatch):
    own, triton = tmp_path / "inductor", tmp_path / "triton"
    for name, path in (("TORCHINDUCTOR_CACHE_DIR", own), ("TRITON_CACHE_DIR", triton)):
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "file").write_bytes(b"x" * 1000)
        monkeypatch.setenv(name, str(path))
    return own, triton


def test_both_folders_with_what_is_new(folders):
    own, triton = folders
    before = cache_folders()
    assert [(folder.path, folder.files, folder.nbytes) for folder in before] == [
        (str(own), 1, 1000),
        (str(triton), 1, 1000),
    ]
    (own / "new").write_bytes(b"x" * 2_000_000)
    (only,) = since(before)  # nothing came to that of Triton
    assert (only.variable, only.files, only.new_bytes) == ("TORCHINDUCTOR_CACHE_DIR", 2, 2_000_000)
    assert str(only) == f"{own}: 2.0 MB in 2 files, 2.0 MB of it new"
    (triton / "new").write_bytes(b"x")
    assert [folder.new_bytes for folder in since(before)] == [2_000_000, 1]


def test_a_folder_inside_another_is_counted_once(folders, monkeypatch):
    own, _ = folders
    monkeypatch.setenv("TRITON_CACHE_DIR", str(own / "triton"))
    assert [folder.path for folder in cache_folders()] == [str(own)]


def test_a_folder_that_does_not_exist_yet_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "b"))
    assert [(folder.files, folder.nbytes) for folder in cache_folders()] == [(0, 0), (0, 0)]
