"""The folders on disk in which PyTorch and Triton keep what they have compiled."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..kernels.internals import inductor


@dataclasses.dataclass(frozen=True)
class CacheFolder:
    """A folder of compiled code, and how much of it is new.

    Attributes:
        variable: The environment variable that sets it.
        path: The folder.
        files: The number of files in it.
        nbytes: Their size in bytes.
        new_bytes: How many of these bytes came since an earlier look at the folder.
    """

    variable: str
    path: str
    files: int
    nbytes: int
    new_bytes: int = 0

    def __str__(self) -> str:
        size, new = (f"{count / 1e6:,.1f} MB" for count in (self.nbytes, self.new_bytes))
        return f"{self.path}: {size} in {self.files:,} files, {new} of it new"


def cache_folders() -> list[CacheFolder]:
    """The folders that this process uses, as they are now: that of Inductor, and that of Triton if it is another."""
    own = inductor.cache_directory()
    folders = {"TORCHINDUCTOR_CACHE_DIR": own}
    triton = os.path.abspath(os.environ.get("TRITON_CACHE_DIR") or os.path.expanduser("~/.triton/cache"))
    if os.path.commonpath([own, triton]) != own:
        folders["TRITON_CACHE_DIR"] = triton
    return [CacheFolder(variable, path, *_contents(path)) for variable, path in folders.items()]


def since(before: list[CacheFolder]) -> list[CacheFolder]:
    """The folders as they are now, with what came since ``before``."""
    known = {folder.path: folder.nbytes for folder in before}
    now = [
        dataclasses.replace(folder, new_bytes=folder.nbytes - known.get(folder.path, 0)) for folder in cache_folders()
    ]
    return [folder for folder in now if folder.variable == "TORCHINDUCTOR_CACHE_DIR" or folder.new_bytes]


def _contents(path: str) -> tuple[int, int]:
    """The number of files in a folder and below, and their bytes. Files that vanish meanwhile are not counted."""
    sizes = []
    for file in Path(path).rglob("*"):
        try:
            if file.is_file():
                sizes.append(file.stat().st_size)
        except OSError:
            continue
    return len(sizes), sum(sizes)
