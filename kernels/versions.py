"""The versions of torch that the package works with, and what becomes of others: the one place that says so.

The package uses undocumented API, so a version counts as supported once the tests have run with it.
``tests/docs/test_versions.py`` holds the files that repeat the bounds to this list: ``pyproject.toml``, the
requirements file of the newest version, the jobs of continuous integration, and the pages for users.

This module imports nothing but the standard library: it is read before torch is known to fit.
"""

from __future__ import annotations

import logging
import re

log = logging.getLogger("innerq_compile.versions")

#: The supported versions of torch, oldest first.
SUPPORTED_TORCH = ("2.11", "2.12", "2.13", "2.14", "2.15")


def release(version: str) -> tuple[int, int]:
    """The first two numbers of a version: ``(2, 13)`` for ``2.13.0+cpu``.

    Raises:
        ValueError: if the text does not begin with two numbers.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ValueError(f"{version!r} is no version: expected two numbers and a point, as in 2.13")
    return int(found[1]), int(found[2])


def is_supported(version: str) -> bool:
    """Whether a version of torch, such as ``2.13.0+cpu``, is among :data:`SUPPORTED_TORCH`."""
    return release(version) in map(release, SUPPORTED_TORCH)


def check_torch(version: str) -> None:
    """Refuse a version of torch that is too old, and warn of one that is newer than all that are known.

    An older version lacks API without which nothing works. A newer one may well work: where it lacks something, what
    needs it is left out with a message of its own.

    Args:
        version: ``torch.__version__``.

    Raises:
        ImportError: if it is older than the oldest supported one.
    """
    oldest, newest = SUPPORTED_TORCH[0], SUPPORTED_TORCH[-1]
    if release(version) < release(oldest):
        raise ImportError(
            f"innerq_compile does not work with torch {version}: it needs torch {oldest} to {newest}. "
            f"Install one of these, such as: pip install 'torch=={newest}.*'"
        )
    if release(version) > release(newest):
        log.warning(
            "torch %s is newer than what innerq_compile is tested with, torch %s to %s. If something fails, see what "
            "`python -m innerq_compile env` lists as missing, or install torch %s",
            version,
            oldest,
            newest,
            newest,
        )
