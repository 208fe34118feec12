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

from torch._dynamo.eval_frame import OptimizedModule, innermost_backend

from ..compiler.backend import innerq_backend


def install() -> None:
    """Give ``OptimizedModule`` the attribute ``generate``. Called when torch looks this backend up."""
    if "generate" not in vars(OptimizedModule):
        OptimizedModule.generate = property(_generate)


def _generate(self: OptimizedModule) -> Callable[..., Any]:
    generate = self._orig_mod.generate  # AttributeError where the model has none, as without this property
    return _compiled_generate(self, generate) if _uses_innerq(self) else generate


def _uses_innerq(module: OptimizedModule) -> bool:
    backend = innermost_backend(module.dynamo_ctx.callback)
    return getattr(backend, "compiler_fn", backend) is innerq_backend


def _compiled_generate(module: OptimizedModule, generate: Callable[..., Any]) -> Callable[..., Any]:
    model = module._orig_mod
    if "_innerq_call" not in vars(module):
        vars(module)["_innerq_call"] = module.dynamo_ctx(model._call_impl)

    @functools.wraps(generate)
    def compiled_generate(*args: Any, **kwargs: Any) -> Any:
        before = model._compiled_call_impl
        model._compiled_call_impl = vars(module)["_innerq_call"]
        try:
            return generate(*args, **kwargs)
        finally:
            model._compiled_call_impl = before

    return compiled_generate
