"""Modules that are compiled in place, and stay compiled when they are copied or pickled.

``nn.Module`` leaves its compiled call out of copies. That of a model with a quantized cache would have a dense one. So
the module has an attribute of which copies get one, too, and which compiles them.
"""

from __future__ import annotations

import inspect
import logging
import pickle
import weakref
from typing import Any

import torch

from ..kernels.internals import dynamo_calls

log = logging.getLogger(__name__)

_NAME = "_innerq_compiled"


def compile_module(module: torch.nn.Module, arguments: dict[str, Any]) -> None:
    """Compile a module in place, as ``module.compile(**arguments)`` does; copies of it are compiled as well."""
    module.compile(**arguments)
    vars(module)[_NAME] = _Compiled(module, arguments)


class _Compiled:
    """How a module is compiled, an attribute of it. It compiles the copies that it gets into.

    A copy gets it before it has any other attribute, and keeps the compiled call that is set here, because none is
    among the attributes that it is then given.
    """

    def __init__(self, module: torch.nn.Module, arguments: dict[str, Any]) -> None:
        self._module = weakref.ref(module)
        self._call = dynamo_calls.compiled_call(module)
        self._arguments = arguments

    def __deepcopy__(self, memo: dict[int, Any]) -> _Compiled | None:
        module = self._compiled_module()
        copied = None if module is None else memo.get(id(module))
        return None if copied is None else _compiled_copy(copied, self._arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        module, nothing = self._compiled_module(), (type(None), ())
        if module is None:
            return nothing
        try:
            pickle.dumps(self._arguments)
        except Exception as error:
            log.warning("what is loaded from this pickle is not compiled: its options cannot be pickled (%s)", error)
            return nothing
        return _pending, (), (module, self._arguments)

    def __setstate__(self, state: tuple[torch.nn.Module, dict[str, Any]]) -> None:
        vars(self).update(vars(_compiled_copy(*state)))

    def _compiled_module(self) -> torch.nn.Module | None:
        """The module, if it is still compiled as it was here, and not in another way or no more."""
        module = self._module()
        return module if module is not None and dynamo_calls.compiled_call(module) is self._call else None


def _pending() -> _Compiled:
    """One that is being loaded. What it belongs to is known once that exists."""
    return _Compiled.__new__(_Compiled)


def _compiled_copy(module: torch.nn.Module, arguments: dict[str, Any]) -> _Compiled:
    known = inspect.signature(torch.compile).parameters  # it may have been pickled with another version
    kept = {name: value for name, value in arguments.items() if name in known}
    dynamo_calls.set_compiled_call(module, torch.compile(dynamo_calls.uncompiled_call(module), **kept))
    return _Compiled(module, kept)
