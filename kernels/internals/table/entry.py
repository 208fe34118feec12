"""An entry of the table, and the check whether the installed torch has its names."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import re
from typing import Any

import torch

#: The supported versions of torch. Every entry was read in the source of each, unless it lists other versions.
READ_IN = ("2.11", "2.12", "2.13")


@dataclasses.dataclass(frozen=True)
class Internal:
    """Names of one module that are used for one purpose.

    Attributes:
        module: the module that has them, such as ``torch._inductor.ir``.
        names: such as ``FixedLayout`` or ``TritonTemplate.maybe_append_choice``; with the keyword arguments that are
            used in brackets, as ``compile_fx(config_patches)``.
        why: why they are needed.
        without: what happens without them.
        on_objects: whether the names are attributes that ``module`` sets or reads on objects, and that no class
            declares. They are then looked for in the source of the module.
        needs: ``cuda`` or ``triton`` if the names are used only with a CUDA build of torch, or only with Triton.
        versions: the versions of torch in whose source the names were read.
    """

    module: str
    names: tuple[str, ...]
    why: str
    without: str
    on_objects: bool = False
    needs: str = ""
    versions: tuple[str, ...] = READ_IN

    def missing(self) -> list[str]:
        """The names that are missing or lack a parameter, each preceded by its module."""
        if not _usable(self.needs):
            return []
        if self.on_objects:
            text = _text(self.module)
            return [f"{self.module}: {name}" for name in self.names if not re.search(rf"\b{name}\b", text)]
        try:
            module = importlib.import_module(self.module)
        except ImportError:
            return [f"{self.module}.{name}" for name in self.names]
        return [f"{self.module}.{name}" for name in self.names if not _has(module, name)]


def _usable(needed: str) -> bool:
    if needed == "cuda":
        return torch.backends.cuda.is_built()
    return needed != "triton" or importlib.util.find_spec("triton") is not None


def _text(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return ""
    return pathlib.Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin else ""


def _has(module: Any, name: str) -> bool:
    path, _, parameters = name.rstrip(")").partition("(")
    value = module
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            return False
    if not parameters:
        return True
    known = inspect.signature(value).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return any_name or all(parameter in known for parameter in parameters.split(", "))
