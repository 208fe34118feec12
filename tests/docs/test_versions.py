"""The supported versions of PyTorch and Python, which stand in several files, are the same everywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from innerq_compile.kernels.versions import SUPPORTED_TORCH
from tests.helpers.scripts import ROOT

FIRST, LAST = SUPPORTED_TORCH[0], SUPPORTED_TORCH[-1]
AFTER = f"2.{int(LAST.partition('.')[2]) + 1}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def newest_torch() -> str:
    """The release that the requirements file pins."""
    (pinned,) = re.findall(r"^torch==(\S+)$", text("requirements/newest.txt"), re.MULTILINE)
    return pinned


def releases_in_ci() -> list[str]:
    """The releases that the jobs of continuous integration install."""
    listed = re.findall(r'torch: "([\w.]+)"', text(".github/workflows/ci.yml"))
    return [newest_torch() if torch == "newest" else torch for torch in listed]


def test_versions_of_torch():
    assert newest_torch().startswith(f"{LAST}.")
    assert f'"torch>={FIRST},<{AFTER}"' in text("pyproject.toml")
    assert [*SUPPORTED_TORCH] == [torch.rpartition(".")[0] for torch in releases_in_ci()]
    (default,) = re.findall(r"^DEFAULT_TORCH := ([\d.]+)$", text("Makefile"), re.MULTILINE)
    assert default in releases_in_ci()


def test_pages_say_the_versions_of_torch():
    assert f"pip install torch=={newest_torch()}    # {FIRST} to {LAST}" in text("README.md")
    assert f"PyTorch {FIRST} to {LAST}" in text("docs/getting-started.md")
    installed = re.findall(r"pip install torch==(\S+)", text("docs/getting-started.md"))
    assert installed and {*installed} == {newest_torch()}
    assert f"| PyTorch | {FIRST} to {LAST} | {', '.join(releases_in_ci())} |" in text("docs/support-matrix.md")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("arguments", "folder", "installed"),
    [
        ([], ".venv", "torch==2.13.0"),
        ([f"TORCH={newest_torch()}"], f".venv-{newest_torch()}", f"torch=={newest_torch()}"),
        (
            ["TORCH=newest", "INDEX=https://nowhere"],
            ".venv-newest",
            "-r requirements/newest.txt --index-url https://nowhere",
        ),
    ],
    ids=["default", "a version", "newest"],
)
def test_make_installs_the_torch_that_it_is_told(arguments, folder, installed, tmp_path):
    """Each into an environment of its own."""
    for name in ("Makefile", "pyproject.toml", "requirements/newest.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # without what a make that runs the tests has handed down
    given = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "TORCH", "INDEX", "VENV")}
    command = ["make", "-n", "test", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=True)
    assert f"|| {folder}/bin/python -m pip install --quiet --disable-pip-version-check {installed}" in done.stdout
    assert f"{folder}/bin/python -m pytest" in done.stdout


def test_versions_of_triton():
    """Every job has the one that its torch brings."""
    tested = re.findall(r'triton: "(\d+\.\d+)\.\d+"', text(".github/workflows/ci.yml"))
    assert len(tested) == len(releases_in_ci())
    assert f"| Triton | {tested[0]} or newer | {tested[0]} to {tested[-1]}, " in text("docs/support-matrix.md")
    assert f'"triton>={tested[0]};' in text("pyproject.toml")


def test_versions_of_python():
    project = text("pyproject.toml")
    assert re.findall(r"Python :: (3\.\d+)", project) == [*PYTHONS]
    assert f'requires-python = ">={PYTHONS[0]}"' in project
    assert f'target-version = "py{PYTHONS[0].replace(".", "")}"' in project
    assert f'pythonVersion = "{PYTHONS[0]}"' in project
    tested = re.findall(r'python: "([\d.]+)"', text(".github/workflows/ci.yml"))
    assert (tested[0], tested[-1]) == (PYTHONS[0], PYTHONS[-1]) and {*tested} <= {*PYTHONS}
    for page in ("README.md", "docs/getting-started.md", "docs/support-matrix.md"):
        assert f"{PYTHONS[0]} to {PYTHONS[-1]}" in text(page), page
