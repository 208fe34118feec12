"""Runs a list of passes over a graph, leaving out passes that fail.

A pass that raises an unexpected exception has a bug, and leaves graph and context half changed. Both are discarded: the
pipeline starts over with a new copy of the captured graph, without the failed pass and those that need it. The result
is correct, but less of it is rewritten.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection

from torch.fx import GraphModule

from ...kernels.internals.dynamo_graphs import copy_graph
from ..context import Config, GraphError, PassContext, PassFailure
from .declaration import Pass, check
from .view import view_for

log = logging.getLogger("innerq_compile.passes")

#: The name under which an observer gets the graph before the first pass.
CAPTURED = "captured"

#: Called with the name `CAPTURED` and the captured graph, and after each pass with the pass's name and the graph.
#: Called again from the start each time that the pipeline starts over.
Observer = Callable[[str, GraphModule], None]


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """The result of running the pipeline.

    Attributes:
        gm: the rewritten copy of the graph.
        context: the context of the passes.
        passes_ran: False if a required pass failed. No pass has run then, and a graph with quantized caches as inputs
            cannot be compiled.
    """

    gm: GraphModule
    context: PassContext
    passes_ran: bool = True


class _Failed(Exception):
    """A pass raised an exception, which is the ``__cause__``. The argument is the name of the pass."""


class Pipeline:
    """A list of passes in the order in which they run.

    Raises:
        DeclarationError: if the declarations are inconsistent.
    """

    def __init__(self, passes: Collection[Pass]) -> None:
        self.passes = tuple(passes)
        check(self.passes)
        self.required = frozenset(graph_pass.name for graph_pass in self.passes if graph_pass.required)

    def names(self) -> tuple[str, ...]:
        """The names of all passes, in order."""
        return tuple(graph_pass.name for graph_pass in self.passes)

    def left_out(self, disabled: Collection[str]) -> tuple[str, ...]:
        """Names of the passes that do not run if those in ``disabled`` do not: they and all that need them."""
        out = set(disabled)
        while more := {p.name for p in self.passes if p.name not in out and not out.isdisjoint(p.needs)}:
            out |= more
        return tuple(name for name in self.names() if name in out)

    def run(self, gm: GraphModule, context: PassContext, observe: Observer | None = None) -> GraphModule:
        """Run the passes that the config does not switch off over ``gm``, in place.

        Raises:
            Exception: any exception that a pass raises.
        """
        context.left_out = self.left_out(context.config.disabled_passes)
        if observe is not None:
            observe(CAPTURED, gm)
        try:
            return self._run(gm, context, observe)
        except _Failed as failed:
            assert failed.__cause__ is not None
            raise failed.__cause__ from None

    def rewrite(
        self,
        captured: GraphModule,
        config: Config,
        *,
        static_lengths: bool = False,
        uncounted: frozenset[str] = frozenset(),
        observe: Observer | None = None,
    ) -> Rewritten:
        """Run the passes over a copy of ``captured``. A pass that fails is left out, and its traceback is logged.

        Args:
            captured: the graph captured by Dynamo; it is not changed.
            config: the user's config.
            static_lengths: whether the graph is to be recorded as a CUDA graph.
            uncounted: names of the inputs that do not count what is written to them.
            observe: called after each pass.

        Raises:
            GraphError: if the graph cannot be compiled and the user has to change it.
            Exception: in strict mode, any exception that a pass raises.
        """
        failures: tuple[PassFailure, ...] = ()
        while True:
            left_out = self.left_out({*config.disabled_passes, *(failure.name for failure in failures)})
            gm = copy_graph(captured)
            context = PassContext(config, static_lengths, uncounted, left_out=left_out, failures=failures)
            if observe is not None:
                observe(CAPTURED, gm)
            if not self.required.isdisjoint(left_out):
                context.left_out = self.names()
                return Rewritten(gm, context, passes_ran=False)
            try:
                return Rewritten(self._run(gm, context, observe), context)
            except _Failed as failed:
                (name,), error = failed.args, failed.__cause__
            if isinstance(error, GraphError) or config.strict or not isinstance(error, Exception):
                assert error is not None
                raise error from error.__cause__
            with_it = self.left_out({*left_out, name})
            failures += (PassFailure(name, error, tuple(other for other in with_it if other not in left_out)),)
            log.error("%s", failures[-1], exc_info=error)

    def _run(self, gm: GraphModule, context: PassContext, observe: Observer | None) -> GraphModule:
        for graph_pass in self.passes:
            if graph_pass.name in context.left_out:
                continue
            try:
                gm = graph_pass.run(gm, view_for(graph_pass, context))
                gm.graph.lint()
            except Exception as error:
                raise _Failed(graph_pass.name) from error
            if observe is not None:
                observe(graph_pass.name, gm)
        gm.recompile()
        return gm
