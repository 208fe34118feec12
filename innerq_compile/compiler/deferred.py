"""Lets the first prompt run before its graph is compiled.

To compile a prompt takes Inductor about as long as all that is done before it, and a program that has just started
waits for its first token. So on a GPU the graph of a prompt, as the passes have rewritten it, first runs operation by
operation, as an eager program does. It is compiled while Inductor waits for the kernels of the decode steps, or at the
next prompt if that comes before any step.

Dynamo has built its guards by then. What the compiler assumes of sizes beyond them is checked in each call; where it
does not hold, the graph runs operation by operation.

A prompt of many tokens is compiled first, because it would need more memory otherwise. So is one whose compiled graph
an earlier process has left on disk.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

import torch
from torch.fx import GraphModule

from ..kernels.collector import sparing_old_objects
from ..kernels.dispatch import plain_torch
from ..kernels.internals.deferred import Situation, compiling_alone
from ..kernels.internals.dynamo_threads import tracing
from ..kernels.internals.graphs import size_hint, write_code
from ..kernels.internals.inductor_waiting import under_autocast, while_waiting
from ..kernels.internals.traces import added_conditions, conditions_of
from ..passes.graph.reading import read
from ..passes.graph.values import example
from ..passes.regions import Regions
from ..runtime.recordings import at_work
from ..runtime.report import GraphKind, GraphReport
from ..runtime.sizes import SizeReader
from .analysis import Analysis
from .execution import Execution, Recorder
from .notices import compiling

log = logging.getLogger(__name__)

#: A prompt of more tokens, of all sequences together, is compiled before it runs: it needs the memory of an eager
#: program otherwise, which has results of single operations that do not exist in a compiled one.
MAX_TOKENS = 16384

#: Takes example inputs of a graph, and compiles it.
Compile = Callable[[Sequence[Any]], Callable[..., Any]]


def can_wait(analysis: Analysis, execution: Execution, regions: Regions, inputs: Sequence[Any]) -> bool:
    """Whether a graph is compiled after its first call.

    Args:
        analysis: the result of the passes.
        execution: how the graph will run.
        regions: its regions. A graph without any may be changed by Inductor, and could not run by itself any more.
        inputs: example inputs of the graph that is compiled.
    """
    tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
    first = analysis.config.compile_prompt_first
    return (
        (any(one.is_cuda for one in tensors) if first is None else not first)
        and analysis.report.kind is GraphKind.PREFILL
        and execution.recorder is Recorder.NONE
        and bool(regions.regions)
        and not _has_more_tokens(analysis)
        and analysis.result.regions is None  # nor has an earlier process compiled it
        and not analysis.observers.any  # which want to see what is compiled
        and not under_autocast()
        and not any(isinstance(one, (float, torch.SymFloat)) for one in inputs)  # may be found to be constants
    )


class DeferredGraph:
    """A graph that runs operation by operation until it is compiled. Called with its inputs.

    Args:
        gm: the graph.
        inputs: example inputs, of which it keeps no data.
        report: its report.
        compile: compiles it.
        kernels: end when the kernels of its operators are compiled. Until then plain torch serves them.
    """

    def __init__(
        self,
        gm: GraphModule,
        inputs: Sequence[Any],
        report: GraphReport,
        compile: Compile,
        kernels: Sequence[Future[Any]],
    ) -> None:
        gm.recompile()
        write_code(gm)
        self._gm, self._report, self._kernels = gm, report, kernels
        self._compile: Compile | None = compile
        self._situation: Situation | None = Situation(inputs)
        self._known = conditions_of(self._situation.shape_env)
        self._called = False
        self._compiled: Callable[..., Any] | None = None
        self._fits: Callable[[Sequence[Any]], bool] = lambda inputs: True
        _WAITING.add(self)

    def __call__(self, *inputs: Any) -> Any:
        if self._called and self._compile is not None:
            self.compile_now()
        self._called = True
        if self._compiled is not None and self._fits(inputs):
            return self._compiled(*inputs)
        with contextlib.nullcontext() if all(one.done() for one in self._kernels) else plain_torch():
            return self._gm.forward(*inputs)

    def compile_now(self) -> None:
        """Compile the graph if it is not and no other thread compiles: outside of the compilation of another one."""
        with compiling_alone() as alone:
            if not alone or self._compile is None:
                return
            with compiling() as notice, at_work(), tracing(), sparing_old_objects():
                notice.concerns(self._report)
                self.compile()

    def compile(self) -> None:
        """Compile the graph if it is not, in a thread that compiles another one. If that fails, it stays as it is."""
        compile, situation = self._compile, self._situation
        self._compile = self._situation = None
        _WAITING.discard(self)
        if compile is None or situation is None:
            return
        try:
            with situation.again():
                compiled = compile(situation.inputs)
                self._fits = _check(self._gm, added_conditions(situation.shape_env, self._known))
        except Exception as error:
            text = "graph %d, a prompt, stays uncompiled and is slower than it could be, because Inductor failed: %r"
            log.warning(text, self._report.index, error, exc_info=error)
            return
        wait(self._kernels)
        self._compiled = compiled


#: Graphs that wait to be compiled. Each belongs to what calls it.
_WAITING: weakref.WeakSet[DeferredGraph] = weakref.WeakSet()


@contextlib.contextmanager
def compiling_those_that_wait() -> Iterator[None]:
    """Context of the compilation of a graph. Those that wait are compiled while Inductor waits for its kernels."""
    with contextlib.ExitStack() as stack:
        for one in list(_WAITING):
            stack.enter_context(while_waiting(one.compile))
        yield


def compile_those_that_wait() -> None:
    """Compile all graphs that wait."""
    for one in list(_WAITING):
        one.compile_now()


def forget_those_that_wait() -> None:
    """No compilation of another graph compiles those that wait now; a call of theirs still does."""
    _WAITING.clear()


def _check(gm: GraphModule, conditions: Sequence[Any]) -> Callable[[Sequence[Any]], bool]:
    """A function of the inputs of a graph: whether conditions on its symbols hold."""
    sizes = SizeReader(gm)
    checks = [sizes.evaluator(condition) for condition in conditions]
    return lambda inputs: all(check(inputs) for check in checks)


def _has_more_tokens(analysis: Analysis) -> bool:
    """Whether a prompt has more than :data:`MAX_TOKENS`."""
    for node in analysis.rewritten.graph.nodes:
        if (call := read(node)) is not None and call.name == "innerq::prefill":
            batch, _, length, _ = example(node.args[0]).shape
            return size_hint(batch) * size_hint(length) > MAX_TOKENS
    return True  # a graph that makes no cache
