"""An entry of the table, and the check that its names exist."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import re
from typing import Any

import torch

from ...versions import SUPPORTED_TORCH, release


@dataclasses.dataclass(frozen=True)
class Internal:
    """Names of one module that are used for one purpose.

    Attributes:
        module: the module that defines the names, such as ``torch._inductor.ir``.
        names: such as ``FixedLayout`` or ``TritonTemplate.maybe_append_choice``; with the keyword parameters that calls
            use: ``compile_fx(config_patches)``.
        why: what they are used for.
        without: what happens if they are missing.
        on_objects: the names are attributes that ``module`` writes to or reads from objects. No class declares them, so
            the check is whether the source of the module mentions them.
        needs: ``cuda`` (a build of torch) or ``triton`` (a package), if the names are not used without it.
        versions: versions of torch that have the names; all supported ones, unless an entry says otherwise.
    """

    module: str
    names: tuple[str, ...]
    why: str
    without: str
    on_objects: bool = False
    needs: str = ""
    versions: tuple[str, ...] = SUPPORTED_TORCH

    def missing(self) -> list[str]:
        """The names that do not exist, or lack a parameter, with the name of the module.

        None in a supported version of torch that is not among ``versions``.
        """
        running = "{}.{}".format(*release(torch.__version__))
        if not _usable(self.needs) or running in {*SUPPORTED_TORCH} - {*self.versions}:
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
