"""``torch.compile(model, backend="innerq").generate(...)`` runs compiled.

``torch.compile`` returns an ``OptimizedModule`` that forwards unknown attributes to the model it wraps: transformers'
``generate``, reached that way, calls the wrapped model and never the compiled one (seen with torch 2.11 to 2.13). For
models compiled with this backend, and for no others, the attribute found here makes the wrapped model call its compiled
form for as long as ``generate`` runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..compiler.backend import innerq_backend
from ..kernels.internals.dynamo_calls import (
    OptimizedModule,
    backend_of,
    compiled_call,
    compiled_form,
    original,
    set_compiled_call,
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
        before = compiled_call(model)
        set_compiled_call(model, vars(module)["_innerq_call"])
        try:
            return generate(*args, **kwargs)
        finally:
            set_compiled_call(model, before)

    return compiled_generate
