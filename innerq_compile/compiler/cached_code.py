"""The key under which Inductor and AOTAutograd cache compiled graphs: a hash of the source that they depend on.

Inductor keys its caches by the graph, its own source and the version of Triton. It does not know the source of this
package that the compiled code depends on: functions of ``kernels`` that are traced, lowerings, and templates.
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

#: The packages whose source determines compiled code. The rest of innerq_compile runs outside of compiled graphs.
_PACKAGES = {"kernels": kernels, "passes": passes}
_SUFFIXES = (".py", ".h")


def source_files() -> dict[str, pathlib.Path]:
    """The source files of these packages by name, such as ``kernels/triton/attention.py``, sorted by name."""
    files = {}
    for name, package in _PACKAGES.items():
        for folder in map(pathlib.Path, package.__path__):
            found = (path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
            files |= {f"{name}/{path.relative_to(folder).as_posix()}": path for path in found}
    return dict(sorted(files.items()))


@functools.cache
def source_key() -> str:
    """A hash of the names and contents of :func:`source_files`. Reading them takes a few milliseconds."""
    digest = hashlib.sha256()
    for name, path in source_files().items():
        content = path.read_bytes()
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def cached_by_source() -> Iterator[None]:
    """Context of every compilation of a rewritten graph: registers the lowerings and keys Inductor's caches by source.

    Graphs compiled without the lowerings have another key, because their code differs.
    """
    registered = lowering.register().done
    with inductor.cached_under(source_key() if registered else f"{source_key()}-calls"):
        yield
