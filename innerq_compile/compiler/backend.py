"""The backend: takes a graph captured by Dynamo, returns a callable that works on quantized caches.

    analyse            run the passes on a copy of the graph, in which quantized caches among the inputs are replaced by
                       their inner tensors, and report the result (analysis.py)
    choose_execution   decide whether the graph runs kernel by kernel or as a CUDA graph, and who records it
                       (execution.py)
    plan_regions       find the repeated layers, each kind of which is compiled once (regions.py)
    keep               let the trace of the graph and all of the above be kept for other processes (traces/)
    compile            Inductor compiles the copy, and its prelude if it has one
    wrap               the callable returned to Dynamo unwraps InnerQTensors into their inner tensors, allocates space
                       for the tokens that the graph appends, and wraps the results (runtime/call.py)

A graph without quantized caches among its inputs and outputs is compiled as it was captured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..cache.tensor import InnerQTensor
from ..compile_error import CompileError
from ..config import InnerQConfig
from ..errors import InnerQError
from ..kernels.collector import sparing_old_objects
from ..kernels.internals import inductor, vector_isa
from ..kernels.internals.dynamo_limits import raise_limits
from ..kernels.internals.dynamo_loops import use_loops
from ..kernels.internals.dynamo_sizes import use_symbols
from ..kernels.internals.dynamo_threads import let_others_call, tracing, use_graphs_of_others
from ..kernels.internals.graphs import write_code
from ..logs import trace_graph
from ..passes.context import GraphError
from ..passes.graph.values import example_or_none
from ..passes.regions import Regions
from ..runtime.call import CompiledGraph
from ..runtime.recordings import Recordings, at_work, release_all
from ..runtime.report import GraphReport
from .analysis import Analysis, analyse, keep
from .cached_code import cached_by_source
from .deferred import DeferredGraph, can_wait, compiling_those_that_wait, forget_those_that_wait
from .execution import Execution, choose_execution, reporting_inductors_graphs
from .kernels_ahead import Kernels, compiling_kernels
from .limits import warn_of_limit
from .loops import LOOPS
from .notices import Notice, compiling
from .options import split_options, without_cuda_graphs
from .regions import compile_by_regions, plan_regions
from .symbols import SYMBOLS

log = logging.getLogger(__name__)


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
        mode: a mode of ``torch.compile``, such as ``"max-autotune"``.
        options: fields of :class:`InnerQConfig`, ``preset``, ``mode`` and options of Inductor, in one dict.

    Returns:
        A callable that takes the inputs of the graph and returns its outputs.

    Raises:
        CompileError: if an option is wrong, if the config does not support a cache of the graph, if an input of a
            graph with quantized caches requires a gradient, or, in strict mode, if an attention was not rewritten.
    """
    try:
        config, inductor_options = split_options(options, mode)
        inductor.start_workers()
        vector_isa.install()
        with compiling() as notice, at_work(), tracing(), sparing_old_objects():
            return _compile(gm, example_inputs, config, inductor_options, notice)
    except CompileError:
        raise
    except (InnerQError, GraphError) as error:
        raise CompileError(str(error)) from None


def _reset() -> None:
    """Release recorded CUDA graphs, as Inductor does on reset: NCCL cannot shut down while they exist."""
    release_all()
    forget_those_that_wait()
    if torch.cuda.is_available():
        inductor.release_cuda_graphs()


innerq_backend.reset = _reset  # torch.compiler.reset() calls it
use_symbols(innerq_backend, SYMBOLS)
use_loops(innerq_backend, LOOPS)
raise_limits(innerq_backend, warn_of_limit)
use_graphs_of_others(innerq_backend)
let_others_call()


def _compile(
    gm: GraphModule, example_inputs: list[Any], config: InnerQConfig, inductor_options: dict[str, Any], notice: Notice
) -> Callable[..., Any]:
    analysis = analyse(gm, config, inductor_options, _uncounted(gm, example_inputs))
    notice.concerns(analysis.report)
    if not analysis.result.passes_ran and any(isinstance(value, InnerQTensor) for value in example_inputs):
        # Run eagerly: InnerQTensor's own operations give the right results, slowly.
        write_code(gm)
        return analysis.observers.observed(_counting_calls(gm.forward, analysis.report))
    execution = choose_execution(analysis, inductor_options)
    with compiling_kernels(analysis.compiled) as kernels:
        regions = plan_regions(analysis, example_inputs, execution.inductor_options)
        keep(analysis, example_inputs, regions)
        if not analysis.result.holds_caches:
            compiled = _compile_as_captured(analysis, execution, regions, example_inputs)
            return analysis.observers.observed(_counting_calls(compiled, analysis.report))
        _refuse_gradients(example_inputs)
        prelude = _compile_prelude(analysis, execution, example_inputs)
        compiled = _compile_rewritten(analysis, execution, regions, example_inputs, kernels)
    graph = CompiledGraph(compiled, prelude, analysis.context, gm, analysis.rewritten, analysis.report)
    return analysis.observers.observed(graph)


def _refuse_gradients(example_inputs: list[Any]) -> None:
    if not torch.is_grad_enabled():
        return
    for value in example_inputs:
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise InnerQError(
                f"a quantized cache has no gradient, but an input of shape {tuple(value.shape)} requires one: call the "
                "model under torch.no_grad() (or model.requires_grad_(False)); train with backend='inductor'"
            )


# --- compiling ------------------------------------------------------------------------------------------------------


def _compile_as_captured(
    analysis: Analysis, execution: Execution, regions: Regions, example_inputs: list[Any]
) -> Callable[..., Any]:
    trace_graph(f"innerq_graph_{analysis.report.index}", analysis.captured)
    with (
        reporting_inductors_graphs(execution, analysis, example_inputs),
        analysis.observers.compiling(analysis.captured, analysis.report),
    ):
        return compile_by_regions(analysis, regions, example_inputs, execution.inductor_options)


def _compile_prelude(analysis: Analysis, execution: Execution, example_inputs: list[Any]) -> Callable[..., Any] | None:
    prelude = analysis.context.prelude
    if prelude is None:
        return None
    by_name = _by_placeholder(analysis.captured, example_inputs)
    examples = [by_name[name] for name in prelude.inputs] + prelude.buffers()
    with cached_by_source():  # not recorded: the prelude runs before the CUDA graph
        return inductor.compile_graph(prelude.graph, examples, without_cuda_graphs(execution.inductor_options))


def _compile_rewritten(
    analysis: Analysis, execution: Execution, regions: Regions, example_inputs: list[Any], kernels: Kernels
) -> Callable[[list[Any], list[int]], Any]:
    """Compile the rewritten graph. The result is called with its inputs and the addresses of its caches.

    The addresses are those of ``Caches.memory``.
    """
    rewritten, report = analysis.rewritten, analysis.report
    by_name = _by_placeholder(analysis.captured, example_inputs)
    placeholders = rewritten.graph.find_nodes(op="placeholder")
    inputs = [by_name.get(node.name, example_or_none(node)) for node in placeholders]
    trace_graph(f"innerq_graph_{report.index}", rewritten)

    def compile(inputs: Sequence[Any]) -> Callable[..., Any]:
        with (
            reporting_inductors_graphs(execution, analysis, inputs),
            analysis.observers.compiling(rewritten, report, analysis.prelude),
            cached_by_source(),
        ):
            return compile_by_regions(analysis, regions, inputs, execution.inductor_options)

    if can_wait(analysis, execution, regions, inputs):
        report.regions = f"{regions}, compiled after its first call"
        compiled = DeferredGraph(rewritten, inputs, report, compile, kernels.not_yet())
    else:
        with compiling_those_that_wait():
            compiled = compile(inputs)
    if execution.inputs is not None:
        return Recordings(compiled, execution.inputs, report, execution.asked)
    log.debug("graph %d: %s; not recorded by innerq_compile: %s", report.index, execution.recorder, execution.reason)

    def call(inputs: list[Any], memory: list[int]) -> Any:
        with at_work():
            return compiled(*inputs)

    return call


def _by_placeholder(gm: GraphModule, example_inputs: list[Any]) -> dict[str, Any]:
    return {node.name: value for node, value in zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True)}


def _uncounted(gm: GraphModule, example_inputs: list[Any]) -> frozenset[str]:
    """The inputs that do not count what is written to them. That they were made so is a guard of the graph."""
    by_name = _by_placeholder(gm, example_inputs)
    tensors = {name: value for name, value in by_name.items() if isinstance(value, torch.Tensor)}
    return frozenset(name for name, tensor in tensors.items() if tensor.is_inference())


def _counting_calls(compiled: Callable[..., Any], report: GraphReport) -> Callable[..., Any]:
    """``compiled``, with its calls counted in ``report``."""

    def call(*args: Any) -> Any:
        with at_work():
            results = compiled(*args)
        report.has_run([])
        return results

    return call
