"""Second step of a compilation: decide whether the graph runs kernel by kernel or as a CUDA graph, and who records it.

A decode step consists of about a thousand small kernels, each faster than its launch. If CUDA graphs were requested and
the whole graph can be recorded, innerq-compile records it (``runtime/recordings.py``). Otherwise Inductor does, which
can leave out parts of a graph.
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
from ..passes.analysis.recordable import RecordedInputs, is_prompt, recorded_inputs
from ..passes.graph.aliases import Writes
from ..runtime.report import CudaGraphs, CudaGraphUse, GraphReport, ServedBy
from .analysis import Analysis
from .options import CUDA_GRAPHS, without_cuda_graphs


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
        reason: why ``recorder`` is INDUCTOR, for the log; may be empty.
    """

    recorder: Recorder
    inductor_options: dict[str, Any]
    inputs: RecordedInputs | None = None
    reason: str = ""


def choose_execution(analysis: Analysis, inductor_options: dict[str, Any]) -> Execution:
    """Decide how a graph runs, and set ``cuda_graphs`` of its report where that is known before the compilation.

    If it may run as a CUDA graph, marks the inputs of the rewritten graph that keep their address.
    """
    context, report = analysis.context, analysis.report
    if not inductor_options.get(CUDA_GRAPHS):
        return Execution(Recorder.NONE, inductor_options)
    if reason := _refusal(analysis.rewritten, context, report):
        report.cuda_graphs = CudaGraphs(CudaGraphUse.NOT_USED, reason)
        return Execution(Recorder.NONE, without_cuda_graphs(inductor_options))
    if not analysis.holds_caches:
        return Execution(Recorder.INDUCTOR, inductor_options)
    _mark_static_inputs(analysis.rewritten, context)
    inputs = recorded_inputs(analysis.rewritten, list(context.cache_inputs()))
    if not isinstance(inputs, RecordedInputs):
        return Execution(Recorder.INDUCTOR, inductor_options, reason=str(inputs))
    report.cuda_graphs = _used(context)
    return Execution(Recorder.INNERQ, without_cuda_graphs(inductor_options), inputs)


def _refusal(gm: GraphModule, context: PassContext, report: GraphReport) -> str | None:
    """Why a graph must not be recorded as a CUDA graph by anybody; None if it may be."""
    if context.lengths_not_hoisted:
        return f"no CUDA graph can serve all lengths: {context.lengths_not_hoisted}"
    if context.attentions and not (context.caches or context.shadows):
        if context.quantized:
            return "a prefill runs once, and its caches outlive the memory pool of a CUDA graph"
        return "no attention of this graph reads a quantized cache"
    if is_prompt(gm):
        return "this graph writes a prompt to a quantized buffer, which runs once and synchronizes with the device"
    for layer in report.layers:
        if layer.kernel.served_by is ServedBy.REFERENCE:
            return f"an attention runs in plain torch, which synchronizes with the device ({layer.kernel})"
    return None


def _mark_static_inputs(gm: GraphModule, context: PassContext) -> None:
    """Mark caches, results of the prelude and inputs written in place as inputs that keep their address.

    CUDA graphs then read and write them in place. If an address does change, Inductor records the graph again, up to
    its limit of recordings. Inductor does not use CUDA graphs for a graph that writes to an input without this mark.
    """
    nodes = [node for cache in context.cache_inputs() for node in cache.tensors]
    if context.prelude is not None:
        nodes += context.prelude.placeholders
    changes = Writes(gm.graph)
    nodes += [node for node in gm.graph.find_nodes(op="placeholder") if changes.of(node)]
    for node in nodes:
        dynamo_graphs.mark_static(node)


def _used(context: PassContext) -> CudaGraphs:
    return CudaGraphs(CudaGraphUse.USED, "; ".join(note.text for note in context.notes))


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
    report.cuda_graphs = CudaGraphs(CudaGraphUse.SKIPPED) if skipped else _used(analysis.context)
