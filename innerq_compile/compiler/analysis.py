"""First step of a compilation: run the passes on a copy of the captured graph and report the result.

Only a graph that is recorded as a CUDA graph has its lengths moved to a prelude. Whether it can be recorded is known
once that is done; if it cannot, and nobody has asked for CUDA graphs, the passes run again and leave the lengths where
they are, so that the graph is the same as with ``cuda_graphs=False``.

What the passes made of a graph is kept with its trace (``traces/``), and used again where that is restored.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from torch.fx import GraphModule

from ..config import InnerQConfig
from ..errors import InnerQError
from ..passes import PIPELINE, PassContext
from ..passes.analysis.recordable import RecordedInputs, is_on_device
from ..passes.regions import Regions
from ..runtime.report import GraphReport
from . import traces
from .observers import Observers
from .options import GraphRequest
from .recordability import NotRecorded, recordability
from .reporting import make_report, stamp
from .reports import record


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What the passes made of a graph, without the graph itself.

    Attributes:
        rewritten: the copy that the passes worked on; in a result that is kept, the graph that is compiled.
        context: the context of the passes, as far as calls need it (``PassContext.for_calls``).
        report: the graph's report.
        recording: how recordings of the graph treat its inputs, or why it is not recorded.
        holds_caches: whether quantized caches are inputs or outputs. If not, the graph is compiled as it was captured.
        passes_ran: False if a pass failed without which a graph with quantized caches cannot be compiled.
        regions: the regions of the graph that is compiled, if an earlier process has found them.
    """

    rewritten: GraphModule
    context: PassContext
    report: GraphReport
    recording: RecordedInputs | NotRecorded
    holds_caches: bool
    passes_ran: bool
    regions: Regions | None = None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The result of the passes for one graph.

    Attributes:
        captured: the graph as Dynamo captured it.
        result: what the passes made of it. Its report is already recorded and logged.
        config: the user's config.
        observers: the observers of this compilation.
        request: what the options say of CUDA graphs.
    """

    captured: GraphModule
    result: PassResult
    config: InnerQConfig
    observers: Observers
    request: GraphRequest

    @property
    def rewritten(self) -> GraphModule:
        """The copy that the passes worked on."""
        return self.result.rewritten

    @property
    def context(self) -> PassContext:
        """The context of the passes."""
        return self.result.context

    @property
    def report(self) -> GraphReport:
        """The graph's report."""
        return self.result.report

    @property
    def compiled(self) -> GraphModule:
        """The graph that is compiled: the rewritten one, or the captured one if that has no quantized caches."""
        return self.rewritten if self.result.holds_caches else self.captured

    @property
    def prelude(self) -> GraphModule | None:
        """The graph that runs before the rewritten one in each call; None if there is none."""
        return None if self.context.prelude is None else self.context.prelude.graph


def analyse(
    gm: GraphModule,
    config: InnerQConfig,
    inductor_options: dict[str, Any],
    uncounted: frozenset[str] = frozenset(),
) -> Analysis:
    """Run the passes on a copy of ``gm``; ``gm`` itself is not changed.

    Args:
        gm: the graph as captured.
        config: the user's config.
        inductor_options: the user's options of Inductor.
        uncounted: names of the inputs that do not count what is written to them.

    Raises:
        InnerQError: in strict mode, if an attention was not rewritten.
    """
    observers = Observers(gm, config, inductor_options)
    request = GraphRequest.of(config, inductor_options)
    result = traces.take_work(gm)
    if isinstance(result, PassResult) and observers.after_pass is None:
        result = dataclasses.replace(result, report=stamp(result.report))
    else:
        result = _run_passes(gm, config, request, observers, uncounted)
    record(result.report)
    if config.strict and result.context.reasons:
        raise InnerQError(f"strict: an attention was not rewritten: {result.context.reasons[0]}")
    return Analysis(gm, result, config, observers, request)


def _run_passes(
    gm: GraphModule, config: InnerQConfig, request: GraphRequest, observers: Observers, uncounted: frozenset[str]
) -> PassResult:
    static_lengths = request is GraphRequest.ASKED or (request is GraphRequest.DEFAULT and is_on_device(gm))
    rewrite = functools.partial(PIPELINE.rewrite, gm, config, uncounted=uncounted, observe=observers.after_pass)
    result = rewrite(static_lengths=static_lengths)
    report = make_report(result.context, config)
    recording = recordability(result.gm, result.context, report, request)
    if request is GraphRequest.DEFAULT and isinstance(recording, NotRecorded) and _lengths_moved(result.context):
        result = rewrite()
        report = make_report(result.context, config)
    context = result.context
    holds_caches = bool(context.rewritten or context.caches)
    return PassResult(result.gm, context.for_calls(), report, recording, holds_caches, result.passes_ran)


def _lengths_moved(context: PassContext) -> bool:
    """Whether passes may have changed a graph, or noted a reason, because it was to be recorded."""
    return context.static_lengths and bool(context.caches or context.shadows)


def keep(analysis: Analysis, example_inputs: list[Any], regions: Regions) -> None:
    """Let the result of the passes be kept with the trace of the graph. To be called before it is compiled.

    Args:
        analysis: the result.
        example_inputs: inputs of the captured graph.
        regions: the regions of the graph that is compiled.
    """
    result = analysis.result
    if result.context.failures:  # another process may have more luck
        traces.captured(analysis.captured, example_inputs)
        return
    # an error in finding regions, or an option that forbids them, is not kept
    kept = dataclasses.replace(result, rewritten=analysis.compiled, regions=regions if regions.regions else None)
    graphs = [gm for gm in (analysis.rewritten, analysis.prelude) if result.holds_caches and gm is not None]
    traces.captured(analysis.captured, example_inputs, graphs, kept)
