"""Compiling a graph after Dynamo has finished with it. See ``table/deferred.py``. Imports Dynamo.

Dynamo calls a backend in a context of its own: a fake mode with the symbols of the graph, the id of the compilation,
and settings. :class:`Situation` notes them, and is entered when the graph is compiled later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._dynamo import convert_frame
from torch._dynamo.utils import (
    get_metrics_context,
    maybe_disable_inference_mode,
    maybe_disable_inference_mode_for_fake_prop,
)
from torch._guards import CompileContext, TracingContext, compile_context, tracing
from torch._subclasses import FakeTensor

from .inductor_waiting import set_to, settings

__all__ = ["Situation", "as_fake", "compiling_alone"]


def as_fake(inputs: Sequence[Any]) -> list[Any]:
    """Example inputs of a graph with fake tensors, as Inductor is about to make of them, if Dynamo compiles the graph.

    The keys of compiled graphs tell whether all tensors were real.
    """
    context = TracingContext.try_get()
    mode: Any = None if context is None else context.fake_mode
    if context is None or mode is None:
        return list(inputs)
    return [_as_fake(value, context, mode) if isinstance(value, torch.Tensor) else value for value in inputs]


def _as_fake(tensor: torch.Tensor, context: TracingContext, mode: Any) -> torch.Tensor:
    if isinstance(tensor, FakeTensor):
        return tensor
    symbolic = context.tensor_to_context.get(tensor)
    source = None if symbolic is None else symbolic.tensor_source
    return mode.from_tensor(tensor, static_shapes=False, symbolic_context=symbolic, source=source)


class Situation:
    """What a compilation needs of the context in which Dynamo calls a backend. Holds no tensor with data.

    Args:
        inputs: example inputs of the graph.

    Attributes:
        inputs: the same, with fake tensors.
        shape_env: the symbols of the graph and what is known of them; None if it has none.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        mode: Any = TracingContext.get().fake_mode
        self.shape_env = mode.shape_env
        self.inputs = as_fake(inputs)
        self._mode, self._compile_id = mode, CompileContext.current_compile_id()
        self._settings, self._tag = settings(), torch.compiler.config.cache_key_tag
        self._grad = torch.is_grad_enabled()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """The context of a compilation, which may be within that of another graph."""
        of_compiler: Any = torch.compiler.config
        with (
            of_compiler.patch(cache_key_tag=self._tag),
            set_to(self._settings),
            maybe_disable_inference_mode(),
            maybe_disable_inference_mode_for_fake_prop(),
            torch.set_grad_enabled(self._grad),
            compile_context(CompileContext(self._compile_id)),
            tracing(TracingContext(self._mode)),
            get_metrics_context(),
        ):
            yield


@contextlib.contextmanager
def compiling_alone() -> Iterator[bool]:
    """A context that yields whether this thread may compile in it, because no other one does. It does not wait."""
    alone = convert_frame.compile_lock.acquire(blocking=False)
    try:
        yield alone
    finally:
        if alone:
            convert_frame.compile_lock.release()
