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
_SUFFIX = ".trace"


def root() -> pathlib.Path:
    """The folder of all traces."""
    return pathlib.Path(inductor.cache_directory()) / "innerq_traces"


def folder(key: Sequence[str]) -> pathlib.Path:
    """The folder of traces of a key."""
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    return root() / digest


def read(key: Sequence[str]) -> Iterator[bytes]:
    """The traces of a key, the latest first."""
    with contextlib.suppress(OSError):
        files = [(file.stat().st_mtime_ns, file) for file in folder(key).glob(f"*{_SUFFIX}")]
        for _, file in sorted(files, reverse=True):
            with contextlib.suppress(OSError):
                yield file.read_bytes()


def write(key: Sequence[str], trace: bytes) -> bool:
    """Keep a trace. Returns whether there was room for it."""
    path = folder(key)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if len(list(path.glob(f"*{_SUFFIX}"))) >= MAX_TRACES:
            return False
        name = hashlib.sha256(trace).hexdigest()[:24]
        handle, temporary = tempfile.mkstemp(dir=path, prefix=f"{name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(trace)
        os.replace(temporary, path / f"{name}{_SUFFIX}")
    except OSError:
        return False
    return True
