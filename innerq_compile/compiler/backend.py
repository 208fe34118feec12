"""The backend: Dynamo's graph in, a callable with quantized caches out.

The passes work on a copy of the graph, in which each quantized cache among the inputs has become its inner tensors.
Inductor compiles that copy. The callable given back to Dynamo takes InnerQTensors apart on the way in, making room for
the tokens that the graph appends, and builds InnerQTensors on the way out (``runtime.py``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..config import InnerQConfig, field_names
from ..errors import InnerQError
from ..inspect.dump import begin_dump, captured_inputs, dumped
from ..inspect.report import SKIPPED, GraphReport, make_report, record
from ..kernels.internals import dynamo_graphs, inductor
from ..kernels.internals.dynamo_calls import ShortenTraceback, counters
from ..passes import PassContext, run_passes
from ..passes.analysis.recordable import RecordedInputs, recorded_inputs
from ..passes.context.context import GraphError
from ..passes.graph.aliases import Writes
from ..passes.hoist_lengths import is_prompt
from ..runtime.call import CompiledGraph
from ..runtime.recordings import Recordings, release_all
from .cached_code import cached_by_source

log = logging.getLogger(__name__)


class CompileError(InnerQError, ShortenTraceback):
    """An InnerQError raised while compiling. Dynamo lets it pass as it is, without its own frames."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.first_useful_frame = None


def innerq_backend(
    gm: GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend of ``torch.compile(..., backend="innerq")``.

    Args:
        gm: the graph as Dynamo captured it; it is not changed.
        example_inputs: its inputs.
        mode: a mode of ``torch.compile``, such as ``"reduce-overhead"``.
        options: fields of :class:`InnerQConfig`, ``preset``, ``mode`` and Inductor's own options, in one dict.

    Raises:
        CompileError: for a wrong option, a cache that the config cannot hold, a graph that needs gradients, and in
            strict mode for the first attention that was not rewritten.
    """
    try:
        config, inductor_options = split_options(options, mode)
        return _compile(gm, example_inputs, config, inductor_options)
    except CompileError:
        raise
    except (InnerQError, GraphError) as error:
        raise CompileError(str(error)) from None


def _reset() -> None:
    """Release recorded CUDA graphs, as resetting ``backend="inductor"`` does: NCCL cannot leave while they live."""
    release_all()
    if torch.cuda.is_available():
        inductor.release_cuda_graphs()


innerq_backend.reset = _reset  # torch.compiler.reset() looks for it


def split_options(options: dict[str, Any] | None, mode: str | None = None) -> tuple[InnerQConfig, dict[str, Any]]:
    """Options of ``torch.compile`` as the config and the options that go to Inductor."""
    options = dict(options or {})
    mode = options.pop("mode", None) or mode
    own = {name: options.pop(name) for name in ("preset", *field_names()) if name in options}
    config = InnerQConfig.preset(own.pop("preset", "base"), **own)
    known = inductor.option_names()
    for name in options:
        if name.replace("-", "_") not in known:
            InnerQConfig.from_options({name: options[name]})  # raises: the name is nobody's
    return config, {**_mode_options(mode), **{name.replace("-", "_"): value for name, value in options.items()}}


def _mode_options(mode: str | None) -> dict[str, Any]:
    if mode is None or mode == "default":
        return {}
    modes = inductor.mode_options()
    if mode not in modes:
        raise InnerQError(f"mode={mode!r} is unknown: allowed are default, {', '.join(modes)}")
    return dict(modes[mode])


def _compile(gm, example_inputs, config: InnerQConfig, inductor_options: dict[str, Any]) -> Callable[..., Any]:
    copy = copy_graph(gm)
    context = PassContext(config, static_lengths=bool(inductor_options.get("triton.cudagraphs")))
    dump = begin_dump(copy, config, inductor_options)
    run_passes(copy, context, observe=None if dump is None else dump.after_pass)
    report = make_report(context)
    record(report)
    if config.strict and context.reasons:
        raise InnerQError(f"strict: an attention was not rewritten: {context.reasons[0]}")
    if context.static_lengths and (reason := _not_recorded(copy, context, report)):
        inductor_options = {**inductor_options, "triton.cudagraphs": False}
        report.cuda_graphs = f"no: {reason}"
    if not context.rewritten and not context.caches:
        with _watched(report, inductor_options, example_inputs, context), dumped(dump, gm, report):
            compiled = inductor.compile_graph(gm, example_inputs, inductor_options)
        return captured_inputs(dump, _counted(compiled, report))
    _refuse_gradients(example_inputs)
    originals = {node.name: value for node, value in zip(_placeholders(gm), example_inputs, strict=True)}
    prelude = None
    if context.prelude is not None:
        examples = [originals[name] for name in context.prelude.inputs] + context.prelude.places()
        without = {**inductor_options, "triton.cudagraphs": False}
        with cached_by_source():
            prelude = inductor.compile_graph(context.prelude.graph, examples, without)
    recorded = None
    if inductor_options.get("triton.cudagraphs"):
        _mark_static(copy, context)
        recorded = recorded_inputs(copy, list(context.cache_inputs()))
    inputs = [originals.get(node.name, node.meta.get("example_value")) for node in _placeholders(copy)]
    if isinstance(recorded, RecordedInputs):
        inductor_options = {**inductor_options, "triton.cudagraphs": False}
        report.cuda_graphs = _used(context)
    with (
        _watched(report, inductor_options, example_inputs, context),
        dumped(dump, copy, report, context),
        cached_by_source(),
    ):
        compiled = inductor.compile_graph(copy, inputs, inductor_options)
    if isinstance(recorded, RecordedInputs):
        call = Recordings(compiled, recorded, report)
    else:
        log.debug("graph %d: Inductor's CUDA graphs, if any: %s", report.index, recorded)

        def call(inputs: list[Any], places: list[int]) -> Any:
            return compiled(*inputs)

    return captured_inputs(dump, CompiledGraph(call, prelude, context, gm, copy, report))


def _not_recorded(gm: GraphModule, context: PassContext, report: GraphReport) -> str | None:
    """Why a graph is not to become a CUDA graph, or None."""
    if context.lengths_stay:
        return f"none serves all lengths: {context.lengths_stay}"
    if context.attentions and not (context.caches or context.shadows):
        if context.quantized:
            return "a prefill runs once, and its caches outlive the memory of a CUDA graph"
        return "no attention of this graph reads a quantized cache"
    if is_prompt(gm):
        return "a prompt is written to a quantized buffer, which runs once and waits for the device"
    slow = [layer.kernel for layer in report.layers if layer.kernel.startswith("reference")]
    if slow:
        return f"plain torch serves an attention, and waits for the device ({slow[0]})"
    return None


def _placeholders(gm: GraphModule) -> list[Node]:
    return gm.graph.find_nodes(op="placeholder")


def _mark_static(gm: GraphModule, context: PassContext) -> None:
    """Tell Inductor that caches, hoisted masks and what the program writes in place keep their address.

    CUDA graphs read them where they are. Another address is right, too: it is recorded anew, up to Inductor's limit of
    recordings, so a program that writes to new tensors in every step gains nothing. Inductor gives up CUDA graphs for a
    graph that writes to an input of which it does not know that.
    """
    nodes = [node for cache in context.cache_inputs() for node in cache.nodes]
    if context.prelude is not None:
        nodes += context.prelude.placeholders
    changes = Writes(gm.graph)
    nodes += [node for node in _placeholders(gm) if changes.of(node)]
    for node in nodes:
        dynamo_graphs.mark_static(node)


def copy_graph(gm: GraphModule) -> GraphModule:
    """A copy of Dynamo's graph module to work on: Dynamo reads its own again after the backend is done."""
    graph = Graph()
    nodes: dict[Any, Any] = {}
    output = graph.graph_copy(gm.graph, nodes)
    graph.output(output)
    graph.output_node().meta = dict(gm.graph.output_node().meta)
    copy = GraphModule(gm, graph, gm.__class__.__name__)
    copy.meta = dict(gm.meta)
    dynamo_graphs.copy_notes(gm, copy, nodes)
    return copy


def _refuse_gradients(example_inputs: list[Any]) -> None:
    if not torch.is_grad_enabled():
        return
    for value in example_inputs:
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise InnerQError(
                f"a quantized cache has no gradient, and an input of shape {tuple(value.shape)} requires one: call the "
                "model under torch.no_grad() (or model.requires_grad_(False)); train with backend='inductor'"
            )


def _counted(compiled: Callable[..., Any], report: GraphReport) -> Callable[..., Any]:
    """A graph that Inductor compiled as it was, which notes its calls."""

    def call(*args: Any) -> Any:
        results = compiled(*args)
        report.ran([])
        return results

    return call


def _used(context: PassContext) -> str:
    """What ``GraphReport.cuda_graphs`` says of a graph that is recorded."""
    return "; ".join(["yes", *(note.text for note in context.notes)])


@contextlib.contextmanager
def _watched(
    report: GraphReport, inductor_options: dict[str, Any], example_inputs: list[Any], context: PassContext
) -> Iterator[None]:
    """Note in the report what becomes of CUDA graphs while Inductor compiles."""
    if not inductor_options.get("triton.cudagraphs"):
        yield
        return
    if not any(isinstance(value, torch.Tensor) and value.is_cuda for value in example_inputs):
        report.cuda_graphs = "no: nothing in this graph is on a CUDA device"
        yield
        return
    skips = counters["inductor"]["cudagraph_skips"]
    yield
    if counters["inductor"]["cudagraph_skips"] == skips:
        report.cuda_graphs = _used(context)
    else:
        report.cuda_graphs = SKIPPED
