"""Tells when Dynamo stops compiling a function. See ``table/dynamo_limits.py``. Imports Dynamo.

Dynamo compiles a code object so many times and no more. From then on, calls that no graph fits run uncompiled.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch._dynamo import config, convert_frame

from .dynamo_backends import OfBackends

__all__ = ["Limit", "on_limit"]


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit that was reached.

    Attributes:
        code: the function that is not compiled any more.
        setting: the name of the limit in ``torch._dynamo.config``.
        value: how many times Dynamo has compiled the function, or all that have the limit together.
    """

    code: CodeType
    setting: str
    value: int


_LISTENERS: OfBackends[Callable[[Limit], None]] = OfBackends()
#: The module of Dynamo that asks whether a limit is reached.
_MODULE: Any = convert_frame


def on_limit(backend: Callable[..., Any], listener: Callable[[Limit], None]) -> None:
    """Call ``listener`` when Dynamo stops compiling a function for a backend, and goes on without an error."""
    _LISTENERS.set(backend, listener)
    if not hasattr(_MODULE.exceeds_recompile_limit, "__wrapped__"):
        _MODULE.exceeds_recompile_limit = _told(_MODULE.exceeds_recompile_limit)


def _told(original: Callable[..., tuple[bool, str]]) -> Callable[..., tuple[bool, str]]:
    @functools.wraps(original)
    def exceeds(*args: Any) -> tuple[bool, str]:
        exceeded, setting = original(*args)
        if exceeded and not config.fail_on_recompile_limit_hit:
            frame = sys._getframe(1).f_locals
            listener = _LISTENERS.of_compiler(frame.get("compiler_fn"))
            code = frame.get("code")
            if listener is not None and isinstance(code, CodeType) and not frame.get("one_graph"):
                listener(Limit(code, setting, getattr(config, setting)))
        return exceeded, setting

    return exceeds
