"""The first step of a compilation: the passes run on a copy of the captured graph, and a report is made."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import GraphModule

from ..config import InnerQConfig
from ..errors import InnerQError
from ..passes import PIPELINE, PassContext
from ..runtime.report import GraphReport
from .options import CUDA_GRAPHS
from .reporting import make_report
from .reports import record
from .watching import Watches


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What is known of a graph once the passes are done with it.

    Attributes:
        captured: the graph as Dynamo captured it.
        rewritten: the copy that the passes worked on.
        context: what they found.
        config: what the user chose.
        report: the graph's report, numbered and logged.
        watches: who watches the compilation.
        passes_ran: False where a pass failed without which no graph with quantized caches can be compiled.
    """

    captured: GraphModule
    rewritten: GraphModule
    context: PassContext
    config: InnerQConfig
    report: GraphReport
    watches: Watches
    passes_ran: bool

    @property
    def holds_caches(self) -> bool:
        """Whether quantized caches enter or leave the graph; else it is compiled as it was captured."""
        return bool(self.context.rewritten or self.context.caches)

    @property
    def prelude(self) -> GraphModule | None:
        """The graph that runs before the rewritten one in each call, if there is one."""
        return None if self.context.prelude is None else self.context.prelude.graph


def analyse(gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any]) -> Analysis:
    """Run the passes on a copy of ``gm``, which stays as it is.

    Raises:
        InnerQError: in strict mode, for the first attention that was not rewritten.
    """
    watches = Watches(gm, config, inductor_options)
    static_lengths = bool(inductor_options.get(CUDA_GRAPHS))
    result = PIPELINE.rewrite(gm, config, static_lengths=static_lengths, observe=watches.after_pass)
    context = result.context
    report = make_report(context, config)
    record(report)
    if config.strict and context.reasons:
        raise InnerQError(f"strict: an attention was not rewritten: {context.reasons[0]}")
    return Analysis(gm, result.gm, context, config, report, watches, result.whole)
