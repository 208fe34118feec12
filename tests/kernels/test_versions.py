"""A torch that is too old is refused when the package is imported; one newer than those known is worth one warning."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from innerq_compile.kernels.versions import SUPPORTED_TORCH, check_torch, is_supported, release

NEWEST = release(SUPPORTED_TORCH[-1])
AFTER = f"{NEWEST[0]}.{NEWEST[1] + 1}.0"

#: Imports the package with another version of torch written into it, as far as the package can see.
PROGRAM = """
import torch
torch.__version__ = {version!r}
import innerq_compile, innerq_compile.api
from innerq_compile import config
"""


def imported_with(version: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(version=version)]
    return subprocess.run(command, capture_output=True, text=True)


def test_release():
    assert release("2.13.0+cpu") == (2, 13) and release("2.16.0a0+git1234") == (2, 16) and release("10.2") == (10, 2)
    with pytest.raises(ValueError, match="'main' is no version: expected two numbers"):
        release("main")


def test_supported():
    assert is_supported(torch.__version__)
    assert all(is_supported(f"{version}.1+cu130") for version in SUPPORTED_TORCH)
    assert not is_supported("2.1.0") and not is_supported(AFTER)
    releases = [release(version) for version in SUPPORTED_TORCH]
    assert releases == [(2, minor) for minor in range(releases[0][1], releases[-1][1] + 1)]


def test_supported_versions_pass_without_a_word(caplog):
    for version in SUPPORTED_TORCH:
        check_torch(f"{version}.0")
    assert caplog.text == ""


@pytest.mark.parametrize("version", ["2.10.1", "2.4.0+cpu", "1.13.1"])
def test_an_older_one_is_refused(version):
    """With the version, what is allowed, and what to do."""
    message = rf"does not work with torch {version.replace('+', '.')}: it needs torch 2\.11 to .* pip install 'torch=="
    with pytest.raises(ImportError, match=message):
        check_torch(version)


def test_a_newer_one_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        check_torch(AFTER)
    assert f"torch {AFTER} is newer than what innerq_compile is tested with" in caplog.text


def test_the_import_refuses_an_older_one():
    done = imported_with("2.10.0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: innerq_compile does not work with torch 2.10.0")


def test_the_import_warns_once_of_a_newer_one():
    done = imported_with(AFTER)
    assert done.returncode == 0 and done.stderr.count("is newer than") == 1
