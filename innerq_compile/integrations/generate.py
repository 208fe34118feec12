"""``torch.compile(model, backend="innerq").generate(...)`` runs compiled.

``torch.compile`` returns an ``OptimizedModule`` that forwards unknown attributes to the model it wraps: transformers'
``generate``, reached that way, calls the wrapped model and never the compiled one (seen with torch 2.11 to 2.13). For
models compiled with this backend, and for no others, the attribute found here makes the wrapped model call its compiled
form for as long as ``generate`` runs, in the thread that runs it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..compiler.backend import innerq_backend
from ..kernels.internals.dynamo_calls import (
    OptimizedModule,
    backend_of,
    compiled_call,
    compiled_form,
    original,
    set_compiled_call,
    uncompiled_call,
)


def install() -> None:
    """Give ``OptimizedModule`` the attribute ``generate``. Called when torch looks this backend up."""
    if "generate" not in vars(OptimizedModule):
        setattr(OptimizedModule, "generate", property(_generate))  # noqa: B010  (it declares none)


def _generate(self: OptimizedModule) -> Callable[..., Any]:
    generate: Any = original(self).generate  # AttributeError where the model has none, as without this property
    return _compiled_generate(self, generate) if backend_of(self) is innerq_backend else generate


def _compiled_generate(module: OptimizedModule, generate: Callable[..., Any]) -> Callable[..., Any]:
    model = original(module)
    if "_innerq_call" not in vars(module):
        vars(module)["_innerq_call"] = compiled_form(module)

    @functools.wraps(generate)
    def compiled_generate(*args: Any, **kwargs: Any) -> Any:
        with _calling(model, vars(module)["_innerq_call"]):
            return generate(*args, **kwargs)

    return compiled_generate


# --- what a model calls ---------------------------------------------------------------------------------------------

#: The calls of ``generate`` that run in this thread, each inside the one before: a model and its compiled form.
_RUNNING: contextvars.ContextVar[tuple[tuple[nn.Module, Callable[..., Any]], ...]] = contextvars.ContextVar(
    "innerq_generate", default=()
)

#: Guards the dispatchers of all models.
_LOCK = threading.Lock()


class _Dispatcher:
    """Stands as the compiled call of a model while any ``generate`` of it runs, in whatever thread.

    Where a ``generate`` of the model runs in the calling thread it calls the form that this one was called on, the
    innermost of several; elsewhere what the model called before.

    Attributes:
        users: how many calls of ``generate`` need it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.before = compiled_call(model)
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for model, form in reversed(_RUNNING.get()):
            if model is self._model:
                return form(*args, **kwargs)
        return (self.before or uncompiled_call(self._model))(*args, **kwargs)


@contextlib.contextmanager
def _calling(model: nn.Module, form: Callable[..., Any]) -> Iterator[None]:
    """Inside, ``model`` calls ``form`` in this thread. Other threads may be inside with forms of their own."""
    with _LOCK:
        dispatcher = compiled_call(model)
        if not isinstance(dispatcher, _Dispatcher):
            dispatcher = _Dispatcher(model)
            set_compiled_call(model, dispatcher)
        dispatcher.users += 1
    token = _RUNNING.set((*_RUNNING.get(), (model, form)))
    try:
        yield
    finally:
        _RUNNING.reset(token)
        with _LOCK:
            dispatcher.users -= 1
            if not dispatcher.users and compiled_call(model) is dispatcher:  # else it was compiled in the meantime
                set_compiled_call(model, dispatcher.before)
