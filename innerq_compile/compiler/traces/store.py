"""Files of traces: below Inductor's folder of caches, one folder for each key.

Files are written under another name and moved, so that a process never reads half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from ...kernels.internals import inductor

#: How many traces a key may have. Each is built and compared in turn, so that many would cost more than tracing.
MAX_TRACES = 12
#: How many traces the folder of all keys may have, and how large they may be together.
MAX_FILES, MAX_BYTES = 1000, 256 * 2**20
_SUFFIX = ".trace"


def root() -> pathlib.Path:
    """The folder of all traces."""
    return pathlib.Path(inductor.cache_directory()) / "innerq_traces"


def folder(key: Sequence[str]) -> pathlib.Path:
    """The folder of traces of a key."""
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    return root() / digest


def read(key: Sequence[str]) -> Iterator[tuple[pathlib.Path, bytes]]:
    """The traces of a key and their files, those that were used last first."""
    with contextlib.suppress(OSError):
        for file, _ in reversed(_by_age(folder(key))):
            with contextlib.suppress(OSError):
                yield file, file.read_bytes()


def used(file: pathlib.Path) -> None:
    """Note that a trace was used: those that have not been for the longest time are deleted where there are many."""
    with contextlib.suppress(OSError):
        os.utime(file)


def write(key: Sequence[str], trace: bytes) -> bool:
    """Keep a trace, in the place of others if there are many. Returns whether it was written."""
    temporary = None
    try:
        path = folder(key)
        path.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(trace).hexdigest()[:24]
        handle, temporary = tempfile.mkstemp(dir=path, prefix=f"{name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(trace)
        os.replace(temporary, path / f"{name}{_SUFFIX}")
        _delete_oldest(path, MAX_TRACES, MAX_BYTES)
        _delete_oldest(root(), MAX_FILES, MAX_BYTES)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False
    return True


def _by_age(path: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
    """The traces in a folder and in those in it, with their sizes, the oldest first."""
    found = []
    for file in path.rglob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process has deleted it
            stat = file.stat()
            found.append((stat.st_mtime_ns, file, stat.st_size))
    return [(file, size) for _, file, size in sorted(found)]


def _delete_oldest(path: pathlib.Path, count: int, size: int) -> None:
    """Delete traces until there are no more than ``count``, of ``size`` bytes together; the latest one stays."""
    files = _by_age(path)
    total = sum(found for _, found in files)
    for index, (file, found) in enumerate(files[:-1]):
        if len(files) - index <= count and total <= size:
            return
        total -= found
        with contextlib.suppress(OSError):
            file.unlink()
        with contextlib.suppress(OSError):  # not empty
            file.parent.rmdir()
