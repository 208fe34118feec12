"""Under what name Inductor and AOTAutograd cache compiled graphs: all source that such graphs are made from.

Inductor keys its caches by the graph, by its own source and by the version of Triton. It knows nothing of what stands
behind the graph on our side: functions of ``kernels`` that are traced into it, lowerings, the text of templates.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pathlib
from collections.abc import Iterator

from .. import kernels, passes
from ..kernels import lowering
from ..kernels.internals import inductor

#: Whose source is traced into graphs or generated from. Nothing of the rest of the package is: it runs around graphs.
_PACKAGES = {"kernels": kernels, "passes": passes}
_SUFFIXES = (".py", ".h")


def source_files() -> dict[str, pathlib.Path]:
    """All files of these packages by their names, such as ``kernels/triton/attention.py``, in order."""
    files = {}
    for name, package in _PACKAGES.items():
        for folder in map(pathlib.Path, package.__path__):
            found = (path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
            files |= {f"{name}/{path.relative_to(folder).as_posix()}": path for path in found}
    return dict(sorted(files.items()))


@functools.cache
def source_key() -> str:
    """A name for the names and contents of :func:`source_files`. Reading them takes a few milliseconds."""
    digest = hashlib.sha256()
    for name, path in source_files().items():
        content = path.read_bytes()
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def cached_by_source() -> Iterator[None]:
    """Around every compilation of a graph of ours: lowerings are registered, and caches hold what today's source makes.

    Graphs that are compiled without the lowerings are other ones, and are cached under another name.
    """
    registered = lowering.register().done
    with inductor.cached_under(source_key() if registered else f"{source_key()}-calls"):
        yield
