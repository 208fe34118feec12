"""Makes ``torch.compile(model, backend="innerq").generate(...)`` run compiled, and ``generate`` of a wrapped model.

A wrapper around a model, such as one that adds adapters to it, passes ``generate`` on to the model, which then calls
itself: :func:`called_by_generate` finds it.

``torch.compile(model)`` returns an ``OptimizedModule`` that forwards unknown attributes to the wrapped model. The
``generate`` of transformers, reached that way, calls the wrapped model, not the compiled one (torch 2.11 to 2.13). This
module adds an attribute ``generate`` to ``OptimizedModule``. For models compiled with this backend, the wrapped model
calls its compiled form while ``generate`` runs, in the thread that runs it; other models are not affected.
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


def called_by_generate(module: nn.Module) -> list[nn.Module]:
    """The modules that the ``generate`` of transformers calls, if somebody calls it through ``module``.

    That is the module itself, if it is a model of transformers that generates, or else the outermost such models in
    it. The module itself if there are none.
    """
    found, pending = [], [module]
    while pending:
        one = pending.pop(0)
        if any(base.__name__ == "GenerationMixin" for base in type(one).__mro__):
            found.append(one)
        else:
            pending += one.children()
    return found or [module]


def install() -> None:
    """Add the attribute ``generate`` to ``OptimizedModule``. Called when torch loads this backend."""
    if "generate" not in vars(OptimizedModule):
        setattr(OptimizedModule, "generate", property(_generate))  # noqa: B010  (the class declares no such attribute)


def _generate(self: OptimizedModule) -> Callable[..., Any]:
    generate: Any = original(self).generate  # an AttributeError if the model has none, as without this property
    return _compiled_generate(self, generate) if backend_of(self) is innerq_backend else generate


def _compiled_generate(module: OptimizedModule, generate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(generate)
    def compiled_generate(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as calls:
            for model in called_by_generate(original(module)):
                calls.enter_context(_calling(model, _compiled_form(module, model)))
            return generate(*args, **kwargs)

    return compiled_generate


def _compiled_form(module: OptimizedModule, model: nn.Module) -> Callable[..., Any]:
    """The form of ``model``, which ``module`` wraps or which is in it; the same one in all calls."""
    with _LOCK:
        forms = vars(module).setdefault("_innerq_calls", {})
        if model not in forms:
            forms[model] = compiled_form(module, model)
        return forms[model]


# --- dispatch of the model's calls ----------------------------------------------------------------------------------

#: The calls of ``generate`` that are running in this thread, outermost first: the model and its compiled form.
_RUNNING: contextvars.ContextVar[tuple[tuple[nn.Module, Callable[..., Any]], ...]] = contextvars.ContextVar(
    "innerq_generate", default=()
)

#: Guards the forms of models, and the installation and removal of dispatchers.
_LOCK = threading.Lock()


class _Dispatcher:
    """Replaces the compiled call of a model while ``generate`` of its compiled form runs in any thread.

    In a thread that runs such a ``generate`` it calls the compiled form, that of the innermost one if several are
    nested; in other threads it calls what the model called before.

    Attributes:
        before: the model's compiled call before; None if it had none.
        users: how many running calls of ``generate`` need it.
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
    """Context in which calls of ``model`` in this thread run ``form``. Other threads may be inside with other forms."""
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
            if not dispatcher.users and compiled_call(model) is dispatcher:  # it may have been compiled in the meantime
                set_compiled_call(model, dispatcher.before)
