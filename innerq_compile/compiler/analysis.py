"""First step of a compilation: run the passes on a copy of the captured graph and report the result.

Only a graph that is recorded as a CUDA graph has its lengths moved to a prelude. Whether it can be recorded is known
once that is done; if it cannot, and nobody has asked for CUDA graphs, the passes run again and leave the lengths where
they are, so that the graph is the same as with ``cuda_graphs=False``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import GraphModule

from ..config import InnerQConfig
from ..errors import InnerQError
from ..passes import PIPELINE, PassContext
from ..passes.analysis.recordable import RecordedInputs, is_on_device
from ..runtime.report import GraphReport
from .observers import Observers
from .options import GraphRequest
from .recordability import NotRecorded, recordability
from .reporting import make_report
from .reports import record


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The result of the passes for one graph.

    Attributes:
        captured: the graph as Dynamo captured it.
        rewritten: the copy that the passes worked on.
        context: the context of the passes.
        config: the user's config.
        report: the graph's report, already recorded and logged.
        observers: the observers of this compilation.
        passes_ran: False if a pass failed without which a graph with quantized caches cannot be compiled.
        request: what the options say of CUDA graphs.
        recording: how recordings of the graph treat its inputs, or why it is not recorded.
    """

    captured: GraphModule
    rewritten: GraphModule
    context: PassContext
    config: InnerQConfig
    report: GraphReport
    observers: Observers
    passes_ran: bool
    request: GraphRequest
    recording: RecordedInputs | NotRecorded

    @property
    def holds_caches(self) -> bool:
        """Whether quantized caches are inputs or outputs. If not, the graph is compiled as it was captured."""
        return bool(self.context.rewritten or self.context.caches)

    @property
    def prelude(self) -> GraphModule | None:
        """The graph that runs before the rewritten one in each call; None if there is none."""
        return None if self.context.prelude is None else self.context.prelude.graph


def analyse(gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any]) -> Analysis:
    """Run the passes on a copy of ``gm``; ``gm`` itself is not changed.

    Raises:
        InnerQError: in strict mode, if an attention was not rewritten.
    """
    observers = Observers(gm, config, inductor_options)
    request = GraphRequest.of(config, inductor_options)
    static_lengths = request is GraphRequest.ASKED or (request is GraphRequest.DEFAULT and is_on_device(gm))
    result = PIPELINE.rewrite(gm, config, static_lengths=static_lengths, observe=observers.after_pass)
    report = make_report(result.context, config)
    recording = recordability(result.gm, result.context, report, request)
    if request is GraphRequest.DEFAULT and isinstance(recording, NotRecorded) and _lengths_moved(result.context):
        result = PIPELINE.rewrite(gm, config, observe=observers.after_pass)
        report = make_report(result.context, config)
    record(report)
    if config.strict and result.context.reasons:
        raise InnerQError(f"strict: an attention was not rewritten: {result.context.reasons[0]}")
    return Analysis(gm, result.gm, result.context, config, report, observers, result.passes_ran, request, recording)


def _lengths_moved(context: PassContext) -> bool:
    """Whether passes may have changed a graph, or noted a reason, because it was to be recorded."""
    return context.static_lengths and bool(context.caches or context.shadows)
