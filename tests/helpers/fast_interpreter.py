"""Makes Triton's interpreter faster: by itself it patches the language at every call of a function.

Patching visits all members of ``triton.language``, which are patched already when a kernel is launched. It takes two
fifths of the time of these tests.
"""

from __future__ import annotations

import types
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def fits_numpy() -> bool:
    """Whether Triton's interpreter, if there is one, works with this numpy: before 3.7 it takes ``int`` of arrays."""
    try:
        versions = [tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy")]
    except PackageNotFoundError:
        return True
    return versions[0] >= (3, 7) or versions[1] < (2, 4)


def install() -> None:
    """Let a function that is called by a kernel patch only those modules that nobody has patched yet."""
    try:
        from triton.runtime import interpreter
    except ImportError:  # no Triton on this machine
        return
    language = interpreter.tl
    patch = interpreter._patch_lang

    def is_patched(module: types.ModuleType) -> bool:
        """Whether the interpreter stands in for the module's functions and for the operators of its tensors."""
        return not any(map(language.core.is_builtin, (module.arange, module.tensor.__add__)))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        used = [value for value in self.fn.__globals__.values() if value is language or value is language.core]
        if not used or not all(map(is_patched, used)):
            patch(self.fn)
        function = self.rewrite()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
