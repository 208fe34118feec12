"""First step of a compilation: run the passes on a copy of the captured graph and report the result."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import GraphModule

from ..config import InnerQConfig
from ..errors import InnerQError
from ..passes import PIPELINE, PassContext
from ..runtime.report import GraphReport
from .observers import Observers
from .options import CUDA_GRAPHS
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
    """

    captured: GraphModule
    rewritten: GraphModule
    context: PassContext
    config: InnerQConfig
    report: GraphReport
    observers: Observers
    passes_ran: bool

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
    static_lengths = bool(inductor_options.get(CUDA_GRAPHS))
    result = PIPELINE.rewrite(gm, config, static_lengths=static_lengths, observe=observers.after_pass)
    context = result.context
    report = make_report(context, config)
    record(report)
    if config.strict and context.reasons:
        raise InnerQError(f"strict: an attention was not rewritten: {context.reasons[0]}")
    return Analysis(gm, result.gm, context, config, report, observers, result.passes_ran)
