"""Whether a graph is recorded as a CUDA graph, and if not, why."""

from __future__ import annotations

import dataclasses

from torch.fx import GraphModule

from ..passes import PassContext
from ..passes.analysis.recordable import RecordedInputs, is_on_device, is_prompt, recorded_inputs
from ..runtime.report import GraphReport, ServedBy
from .options import GraphRequest


@dataclasses.dataclass(frozen=True)
class NotRecorded:
    """Why a graph is not recorded by ``runtime/recordings.py``.

    Attributes:
        reason: the reason, for the user.
        by_nobody: whether Inductor must not record it, either.
    """

    reason: str
    by_nobody: bool = True


def recordability(
    gm: GraphModule, context: PassContext, report: GraphReport, request: GraphRequest
) -> RecordedInputs | NotRecorded:
    """How recordings of a graph treat its inputs, or why it is not recorded.

    Args:
        gm: the rewritten graph.
        context: the context of its passes.
        report: its report.
        request: what the options say of CUDA graphs.
    """
    asked = request is GraphRequest.ASKED
    if request is GraphRequest.OFF:
        return NotRecorded("switched off")
    if not (asked or is_on_device(gm)):
        return NotRecorded("nothing in this graph is on a CUDA device")
    if not asked and (names := {"index_writes", "hoist_lengths"}.intersection(context.left_out)):
        return NotRecorded(f"no CUDA graph can serve all lengths without {' and '.join(sorted(names))}")
    if reason := _refusal(gm, context, report):
        return NotRecorded(reason)
    if not (context.rewritten or context.caches):
        return NotRecorded("this graph has no quantized cache", by_nobody=False)
    hoisted = () if context.prelude is None else context.prelude.placeholders
    inputs = recorded_inputs(gm, list(context.cache_inputs()), hoisted, asked=asked)
    return inputs if isinstance(inputs, RecordedInputs) else NotRecorded(str(inputs), by_nobody=False)


def _refusal(gm: GraphModule, context: PassContext, report: GraphReport) -> str | None:
    """Why a graph must not be recorded as a CUDA graph by anybody; None if it may be."""
    if context.lengths_not_hoisted:
        return context.lengths_not_hoisted
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
