"""Calls a compiled graph: unwraps InnerQTensors among its arguments, and wraps caches among its results."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..passes.context import PassContext
from .call_caches import GraphCaches
from .hoisted_inputs import HoistedInputs
from .outputs import Outputs
from .recordings import Recordings
from .report import RUN_OBSERVERS, GraphReport
from .sizes import SizeReader


class CompiledGraph:
    """A compiled graph with quantized caches. Takes the arguments and returns the outputs of the captured graph.

    Args:
        compiled: the compiled graph. It is called with a list of its inputs and with ``Caches.memory``.
        prelude: the compiled prelude; None if there is none.
        context: the context of the passes.
        original: the graph as captured.
        rewritten: the graph that was compiled.
        report: the report of the graph, which counts its calls.
    """

    def __init__(
        self,
        compiled: Callable[[list[Any], list[int]], Sequence[Any]],
        prelude: Callable[..., Any] | None,
        context: PassContext,
        original: GraphModule,
        rewritten: GraphModule,
        report: GraphReport,
    ) -> None:
        self._report = report
        self._compiled = compiled
        self._begin, buffers = _on_this_stream, None
        if isinstance(compiled, Recordings):
            self._begin, buffers = compiled.begin, compiled.buffers
        sizes = SizeReader(original)
        self._hoisted = None
        if prelude is not None and context.prelude is not None:
            rooms = [(index, cache.format) for index, cache in context.caches_with_room()]
            self._hoisted = HoistedInputs(prelude, context.prelude, rooms, original, sizes, buffers)
        self._outputs = Outputs(context.outputs, list(context.caches.values()), sizes)
        self._caches = GraphCaches(context, original, sizes, self._outputs.appended)
        names = [node.name for node in original.graph.find_nodes(op="placeholder")]
        kept = [node.name for node in rewritten.graph.find_nodes(op="placeholder")]
        self._dense = _taker([index for index, name in enumerate(names) if name in kept])

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        stream = self._begin()
        if stream is not None and self._hoisted is not None:
            self._hoisted.used_on(stream)
        with self._caches.prepare(args) as caches:
            inputs = self._dense(args)
            inputs += caches.inner
            if self._hoisted is not None:
                inputs += self._hoisted(args, caches.inner)
            results = self._compiled(inputs, caches.memory)
            caches.commit()
            outputs, new_caches = self._outputs(args, results, caches.storages)
            self._caches.expect(outputs)
        seen = [*caches.all_storages, *(cache._storage for cache in new_caches)] if RUN_OBSERVERS.opened else []
        self._report.has_run(seen)
        return tuple(outputs)


def _on_this_stream() -> torch.cuda.Stream | None:
    """Replaces :meth:`Recordings.begin` for a graph that is not recorded and has no other stream to wait for."""
    return None


def _taker(indices: list[int]) -> Callable[[tuple[Any, ...]], list[Any]]:
    """A fast function that selects the arguments at ``indices``, of which there may be hundreds."""
    if len(indices) < 2:
        return lambda args: [args[index] for index in indices]
    take = operator.itemgetter(*indices)
    return lambda args: list(take(args))
