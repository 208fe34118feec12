"""A checkout can be imported without installing it, and sdist and wheel contain every file once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Where the folders at the root are imported from.
PACKAGES = {"innerq_compile": "innerq_compile", "passes": "innerq_compile/passes", "kernels": "innerq_compile/kernels"}

PROGRAM = """
import importlib, pathlib, pkgutil, sys
sys.path[:0] = {paths!r}
import innerq_compile.api, innerq_compile.passes, innerq_compile.kernels.lowering
names = [module.name for module in pkgutil.walk_packages(innerq_compile.__path__, "innerq_compile.")]
for name in names:
    if not name.startswith("innerq_compile.kernels.triton.") and not name.endswith("__main__"):
        importlib.import_module(name)
print(innerq_compile.__file__)
"""


def source_files() -> dict[str, Path]:
    """Every file of the package, by where it is when installed."""
    found = {}
    for folder, installed in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            own = folder != "innerq_compile" or inside.parts[0] not in ("passes", "kernels")
            if path.is_file() and own and "__pycache__" not in inside.parts:
                found[f"{installed}/{inside.as_posix()}"] = path
    return found


def imported_from(folder: Path) -> Path:
    """Import every module from ``folder``, in a Python that knows nothing installed but torch and the like."""
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    program = PROGRAM.format(paths=[str(folder), *libraries])
    # -S: without the hooks of a development installation, which would find the checkout
    command = [sys.executable, "-I", "-S", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip().splitlines()[-1])


def test_a_checkout_imports_without_installation():
    assert imported_from(ROOT).parent == ROOT / "innerq_compile"


def test_all_packages_are_listed():
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {name.removesuffix("/__init__.py").replace("/", ".") for name in source_files() if "__init__.py" in name}
    assert sorted(listed) == sorted(there)
    folders = {str(Path(name).parent) for name in source_files() if name.endswith(".py")}
    assert {folder.replace("/", ".") for folder in folders} == there, "a folder without __init__.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """An sdist of a copy of the checkout, and the wheel that is built of that sdist alone."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("packaging")
    unwanted = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "build", "dist", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=unwanted)

    def build(what: str, source: Path) -> Path:
        program = f"from setuptools import build_meta; build_meta.build_{what}({str(folder)!r})"
        subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
        (made,) = folder.glob("*.tar.gz" if what == "sdist" else "*.whl")
        return made

    sdist = build("sdist", folder / "checkout")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", source)


def test_the_wheel_holds_every_file_once(built):
    names = zipfile.ZipFile(built[1]).namelist()
    assert [name for name, count in Counter(names).items() if count > 1] == []
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == set(source_files())


def test_the_sdist_holds_what_tests_need(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "Makefile",
        "requirements/newest.txt",
        "tests/conftest.py",
        "typings/triton/language.pyi",
    } <= names
    assert {
        "passes/__init__.py",
        "kernels/__init__.py",
        "docs/method.md",
        "tests/kernels/lowering/golden/row-linear.txt",
    } <= names


def test_the_wheel_imports(built, tmp_path):
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path)
    assert imported_from(tmp_path).parent == tmp_path / "innerq_compile"
    assert (tmp_path / "innerq_compile" / "py.typed").exists()
