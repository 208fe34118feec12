"""Imports scripts from folders that are not packages, such as docs/ and benchmarks/."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def script(path: str) -> ModuleType:
    """``docs/make_api``, imported as Python does when it is run: its folder stands in front of the path."""
    folder, _, name = path.rpartition("/")
    sys.path.insert(0, str(ROOT / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / folder))
