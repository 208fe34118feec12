"""innerq-compile: a quantized KV cache for PyTorch decoders, inserted by a ``torch.compile`` backend.

Example:
    >>> model = innerq(model)  # compiled in place
    >>> model.generate(**inputs)  # transformers' generate now runs with a quantized cache

The exported names are imported on first use, so that importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from .kernels.versions import check_torch

if TYPE_CHECKING:
    from .ahead.report import WarmUp
    from .ahead.warm_up import warm_up
    from .api import innerq
    from .cache.buffer import InnerQBuffer
    from .cache.empty_cache import empty_cache
    from .cache.tensor import InnerQTensor
    from .compiler.reports import clear_reports, compiled_graphs
    from .config import InnerQConfig
    from .errors import InnerQError, UnsupportedOperation
    from .inspect.dump import dump_graphs
    from .inspect.explain import explain
    from .inspect.explanation import Explanation
    from .presets import PRESETS
    from .runtime.report import GraphReport

__version__ = "0.1.0"

_MODULES = {
    "innerq": "api",
    "WarmUp": "ahead.report",
    "warm_up": "ahead.warm_up",
    "InnerQBuffer": "cache.buffer",
    "empty_cache": "cache.empty_cache",
    "PRESETS": "presets",
    "InnerQConfig": "config",
    "dump_graphs": "inspect.dump",
    "InnerQError": "errors",
    "UnsupportedOperation": "errors",
    "Explanation": "inspect.explanation",
    "explain": "inspect.explain",
    "GraphReport": "runtime.report",
    "clear_reports": "compiler.reports",
    "compiled_graphs": "compiler.reports",
    "InnerQTensor": "cache.tensor",
}

__all__ = [
    "PRESETS",
    "Explanation",
    "GraphReport",
    "InnerQBuffer",
    "InnerQConfig",
    "InnerQError",
    "InnerQTensor",
    "UnsupportedOperation",
    "WarmUp",
    "clear_reports",
    "compiled_graphs",
    "dump_graphs",
    "empty_cache",
    "explain",
    "innerq",
    "warm_up",
]


def _start() -> None:
    """Check torch before anything uses what only known versions have, then register the package's logs."""
    check_torch(torch.__version__)
    from .logs import register

    register()


_start()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
