"""The supported versions of PyTorch and Python, which stand in several files, are the same everywhere."""

from __future__ import annotations

import re

from innerq_compile.kernels.internals.table.entry import SUPPORTED_TORCH
from tests.helpers.scripts import ROOT

FIRST, LAST = SUPPORTED_TORCH[0], SUPPORTED_TORCH[-1]
AFTER = f"2.{int(LAST.partition('.')[2]) + 1}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_versions_of_torch():
    assert f'"torch>={FIRST},<{AFTER}"' in text("pyproject.toml")
    assert [*SUPPORTED_TORCH] == re.findall(r'torch: "(\d+\.\d+)\.\d+"', text(".github/workflows/ci.yml"))
    low, high = (version.replace(".", ", ") for version in (FIRST, AFTER))
    assert f"not ({low}) <=" in text("Makefile") and f"< ({high})" in text("Makefile")
    assert f"TORCH ?= torch=={LAST}." in text("Makefile")
    listed = f"{', '.join(SUPPORTED_TORCH[:-1])} or {LAST}"
    assert listed in text("README.md") and f"PyTorch {listed}" in text("docs/getting-started.md")
    assert f"| PyTorch | {FIRST} to {LAST} |" in text("docs/support-matrix.md")


def test_versions_of_python():
    project = text("pyproject.toml")
    assert re.findall(r"Python :: (3\.\d+)", project) == [*PYTHONS]
    assert f'requires-python = ">={PYTHONS[0]}"' in project
    tested = re.findall(r'python: "([\d.]+)"', text(".github/workflows/ci.yml"))
    assert (tested[0], tested[-1]) == (PYTHONS[0], PYTHONS[-1]) and {*tested} <= {*PYTHONS}
    for page in ("README.md", "docs/getting-started.md", "docs/support-matrix.md"):
        assert f"{PYTHONS[0]} to {PYTHONS[-1]}" in text(page), page
