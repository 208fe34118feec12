"""The second step of a compilation: how the graph will run, as single kernels or as a CUDA graph, and whose.

A decode step is a thousand small kernels that take less time than their launches. Where CUDA graphs were asked for, we
record the whole graph ourselves (``runtime/recordings.py``) if all of it can be recorded, and leave it to Inductor,
which leaves out what cannot, if not.
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
    """Who makes CUDA graphs of a graph."""

    NOBODY = enum.auto()
    OURS = enum.auto()  # runtime/recordings.py
    INDUCTOR = enum.auto()


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a graph will run.

    Attributes:
        recorder: who makes CUDA graphs of it.
        inductor_options: the options that it is compiled with.
        inputs: what our recordings have to know of its inputs; None where they are not made.
        why: why our recordings are not made although CUDA graphs were asked for; for the log.
    """

    recorder: Recorder
    inductor_options: dict[str, Any]
    inputs: RecordedInputs | None = None
    why: str = ""


def choose_execution(analysis: Analysis, inductor_options: dict[str, Any]) -> Execution:
    """Decide how a graph runs, and note in its report what is decided already.

    Marks inputs of the rewritten graph that keep their address, where CUDA graphs will read them.
    """
    context, report = analysis.context, analysis.report
    if not inductor_options.get(CUDA_GRAPHS):
        return Execution(Recorder.NOBODY, inductor_options)
    if reason := _not_recorded(analysis.rewritten, context, report):
        report.cuda_graphs = CudaGraphs(CudaGraphUse.NOT_USED, reason)
        return Execution(Recorder.NOBODY, without_cuda_graphs(inductor_options))
    if not analysis.holds_caches:
        return Execution(Recorder.INDUCTOR, inductor_options)
    _mark_inputs_that_stay(analysis.rewritten, context)
    inputs = recorded_inputs(analysis.rewritten, list(context.cache_inputs()))
    if not isinstance(inputs, RecordedInputs):
        return Execution(Recorder.INDUCTOR, inductor_options, why=str(inputs))
    report.cuda_graphs = _used(context)
    return Execution(Recorder.OURS, without_cuda_graphs(inductor_options), inputs)


def _not_recorded(gm: GraphModule, context: PassContext, report: GraphReport) -> str | None:
    """Why a graph is not to become a CUDA graph, whoever would record it; None where it may."""
    if context.lengths_stay:
        return f"none serves all lengths: {context.lengths_stay}"
    if context.attentions and not (context.caches or context.shadows):
        if context.quantized:
            return "a prefill runs once, and its caches outlive the memory of a CUDA graph"
        return "no attention of this graph reads a quantized cache"
    if is_prompt(gm):
        return "a prompt is written to a quantized buffer, which runs once and waits for the device"
    for layer in report.layers:
        if layer.kernel.served_by is ServedBy.REFERENCE:
            return f"plain torch serves an attention, and waits for the device ({layer.kernel})"
    return None


def _mark_inputs_that_stay(gm: GraphModule, context: PassContext) -> None:
    """Tell Inductor that caches, hoisted masks and what the program writes in place keep their address.

    CUDA graphs read them where they are. Another address is right, too: it is recorded anew, up to Inductor's limit of
    recordings, so a program that writes to new tensors in every step gains nothing. Inductor gives up CUDA graphs for a
    graph that writes to an input of which it does not know that.
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
    """Around the compilation by Inductor: the report tells whether CUDA graphs that it is to make are made."""
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
