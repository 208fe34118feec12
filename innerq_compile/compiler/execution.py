"""Second step of a compilation: decide whether the graph runs kernel by kernel or as a CUDA graph, and who records it.

A decode step consists of about a thousand small kernels, each faster than its launch. If the whole graph can be
recorded, innerq-compile records it (``runtime/recordings.py``), unless the user has switched that off. If it cannot, it
runs kernel by kernel. Only if the user has asked for CUDA graphs Inductor records it, which can leave out parts of a
graph, and whose recordings overwrite the results of earlier steps. It records once for each capacity of the caches,
which are inputs of the graph (``kernels/internals/explicit_sizes.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..kernels.internals import dynamo_graphs
from ..kernels.internals.dynamo_calls import counters
from ..passes import PassContext
from ..passes.analysis.recordable import RecordedInputs
from ..passes.graph.aliases import Writes
from ..runtime.report import CudaGraphs, CudaGraphUse
from .analysis import Analysis
from .options import CUDA_GRAPHS, GraphRequest, without_cuda_graphs

#: Details of reports.
BY_DEFAULT, BY_INDUCTOR = "by default", "by Inductor"


class Recorder(enum.Enum):
    """Who records CUDA graphs of a graph: nobody, ``runtime/recordings.py`` or Inductor."""

    NONE = enum.auto()
    INNERQ = enum.auto()
    INDUCTOR = enum.auto()


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a graph will run.

    Attributes:
        recorder: who records CUDA graphs of it.
        inductor_options: the options that Inductor compiles it with.
        inputs: how recordings treat each input; None unless ``recorder`` is INNERQ.
        reason: why ``recorder`` is not INNERQ, for the log.
        asked: whether the user has asked for CUDA graphs.
    """

    recorder: Recorder
    inductor_options: dict[str, Any]
    inputs: RecordedInputs | None = None
    reason: str = ""
    asked: bool = False


def choose_execution(analysis: Analysis, inductor_options: dict[str, Any]) -> Execution:
    """Decide how a graph runs, and set ``cuda_graphs`` of its report where that is known before the compilation.

    If Inductor may record it, marks the inputs of the rewritten graph that keep their address.
    """
    context, report, recording = analysis.context, analysis.report, analysis.result.recording
    asked = analysis.request is GraphRequest.ASKED
    if isinstance(recording, RecordedInputs):
        report.cuda_graphs = CudaGraphs(CudaGraphUse.USED, _detail("" if asked else BY_DEFAULT, context))
        return Execution(Recorder.INNERQ, without_cuda_graphs(inductor_options), recording, asked=asked)
    if asked and not recording.by_nobody:
        if analysis.result.holds_caches:
            _mark_static_inputs(analysis.rewritten, context)
        options = {**inductor_options, CUDA_GRAPHS: True}  # what asks may be Inductor's own configuration
        return Execution(Recorder.INDUCTOR, options, reason=recording.reason, asked=True)
    off = analysis.request is GraphRequest.OFF
    report.cuda_graphs = CudaGraphs(CudaGraphUse.OFF if off else CudaGraphUse.NOT_USED, "" if off else recording.reason)
    plain = analysis.request is GraphRequest.DEFAULT  # Inductor's own configuration has no CUDA graphs, either
    options = inductor_options if plain else without_cuda_graphs(inductor_options)
    return Execution(Recorder.NONE, options, reason=recording.reason)


def _mark_static_inputs(gm: GraphModule, context: PassContext) -> None:
    """Mark caches, results of the prelude and inputs written in place as inputs that keep their address.

    Inductor's CUDA graphs then read and write them in place. If an address does change, Inductor records the graph
    again, up to its limit of recordings. Inductor does not use CUDA graphs for a graph that writes to an input without
    this mark. A graph that Inductor does not record has no marks: Inductor would rely on their alignment.
    """
    nodes = [node for cache in context.cache_inputs() for node in cache.tensors]
    if context.prelude is not None:
        nodes += context.prelude.placeholders
    changes = Writes(gm.graph)
    nodes += [node for node in gm.graph.find_nodes(op="placeholder") if changes.of(node)]
    for node in nodes:
        dynamo_graphs.mark_static(node)


def _detail(first: str, context: PassContext) -> str:
    return "; ".join(filter(None, [first, *(note.text for note in context.notes)]))


@contextlib.contextmanager
def reporting_inductors_graphs(
    execution: Execution, analysis: Analysis, example_inputs: Sequence[Any]
) -> Iterator[None]:
    """Context of a compilation by Inductor: afterwards the report says whether Inductor uses CUDA graphs."""
    if execution.recorder is not Recorder.INDUCTOR:
        yield
        return
    report = analysis.report
    if not any(isinstance(value, torch.Tensor) and value.is_cuda for value in example_inputs):
        report.cuda_graphs = CudaGraphs(CudaGraphUse.NOT_USED, "nothing in this graph is on a CUDA device")
        yield
        return
    skips = counters["inductor"]["cudagraph_skips"]
    yield
    skipped = counters["inductor"]["cudagraph_skips"] != skips
    used = CudaGraphs(CudaGraphUse.USED, _detail(BY_INDUCTOR, analysis.context))
    report.cuda_graphs = CudaGraphs(CudaGraphUse.SKIPPED) if skipped else used
