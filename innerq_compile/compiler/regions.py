"""Compiles a graph region by region, each kind of region once (see ``passes/regions``)."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from ..kernels.internals import inductor
from ..kernels.internals.deferred import as_fake
from ..kernels.internals.dynamo_calls import RestartAnalysis
from ..kernels.internals.graphs import as_size
from ..kernels.internals.inductor_waiting import while_waiting
from ..passes.graph.reading import outputs
from ..passes.graph.values import example, example_or_none
from ..passes.regions import ExtractedRegion, Guards, Region, Regions, extract, find_regions, is_size
from ..runtime.regions import Call, RegionCalls
from .analysis import Analysis
from .options import CUDA_GRAPHS

log = logging.getLogger(__name__)


def plan_regions(analysis: Analysis, inputs: Sequence[Any], options: dict[str, Any]) -> Regions:
    """The regions of the graph that is compiled, or none and the reason why it is compiled as a whole.

    Args:
        analysis: the result of the passes.
        inputs: example inputs of the captured graph.
        options: options of Inductor.
    """
    if reason := _obstacle(analysis, inputs, options):
        return Regions([], reason)
    if analysis.result.regions is not None:
        return analysis.result.regions
    try:
        return find_regions(analysis.compiled.graph)
    except Exception as error:  # the graph as a whole does not depend on this
        return Regions([], _failed(analysis, "finding", error))


def compile_by_regions(
    analysis: Analysis, regions: Regions, inputs: Sequence[Any], options: dict[str, Any]
) -> Callable[..., Any]:
    """Compile a graph with Inductor, region by region if that saves time, and note in the report what was done.

    Args:
        analysis: the result of the passes.
        regions: the result of :func:`plan_regions`.
        inputs: example inputs of the graph that is compiled.
        options: options of Inductor.
    """
    gm, report, reason = analysis.compiled, analysis.report, regions.reason
    if regions.regions:
        report.regions = str(regions)  # now, for the notice of a compilation that takes long
        try:
            return compile_regions(gm, regions, inputs, options)
        except RestartAnalysis:
            # raised again for the whole graph, so that all floats that have to be constants are found at once
            return inductor.compile_graph(gm, inputs, options)
        except Exception as error:  # the graph as a whole does not depend on this
            reason = _failed(analysis, "compiling", error)
    report.regions = f"compiled as a whole: {reason}"
    return inductor.compile_graph(gm, inputs, options)


def _failed(analysis: Analysis, what: str, error: Exception) -> str:
    """Log an error in regions and return the reason for the report. In strict mode it is raised."""
    if analysis.config.strict:
        raise error
    log.error("graph %d is compiled as a whole: %r", analysis.report.index, error, exc_info=error)
    return f"{what} its regions failed: {error!r}"


def _obstacle(analysis: Analysis, inputs: Sequence[Any], options: dict[str, Any]) -> str:
    """Why a graph has to be compiled as a whole; empty if regions of it can be compiled."""
    if not analysis.config.regions:
        return "regions=False"
    if passes := inductor.custom_passes(options):
        return f"{', '.join(passes)} of Inductor's options expect it so"
    if options.get(CUDA_GRAPHS):
        return "Inductor records it as a CUDA graph"
    if torch.is_grad_enabled() and any(isinstance(one, torch.Tensor) and one.requires_grad for one in inputs):
        return "it computes gradients"
    return ""


def compile_regions(
    gm: GraphModule, regions: Regions, inputs: Sequence[Any], options: dict[str, Any]
) -> Callable[..., Sequence[Any]]:
    """Compile a graph with Inductor, region by region.

    Args:
        gm: the graph.
        regions: its regions, at least one.
        inputs: example inputs of the graph.
        options: options of Inductor.

    Returns:
        A function that takes the inputs of the graph and returns its outputs.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    sizes = _sizes(placeholders)
    compiler = _Compiler(gm, dict(zip(placeholders, as_fake(inputs), strict=True)), sizes, options)
    compiler.compile_kinds(regions.regions)
    functions = [compiler.function(region) for region in regions.regions]

    places = {node: place for place, node in enumerate(placeholders)}
    needed = list(dict.fromkeys(symbol for function in functions for symbol in function.symbols))
    symbol_places = {symbol: len(places) + index for index, symbol in enumerate(needed)}
    count = itertools.count(len(places) + len(needed))
    calls = []
    for region, function, freed in zip(regions.regions, functions, _freed(gm, regions.regions), strict=True):
        arguments = [places[region.inputs[index]] for index in function.inputs]
        arguments += [symbol_places[symbol] for symbol in function.symbols]
        results = [places.setdefault(node, next(count)) if _needed(node, region) else None for node in region.outputs]
        calls.append(Call(function.compiled, arguments, [places[node] for node in freed], results))
    returned = [places[value] if value in places else (_constant(gm, value),) for value in outputs(gm.graph)]
    return RegionCalls(calls, [sizes[symbol][:2] for symbol in needed], next(count), returned)


@dataclasses.dataclass(frozen=True)
class _Function:
    """The compiled function of a region.

    Attributes:
        compiled: takes a list of the inputs, which it empties.
        inputs: indices among ``Region.inputs`` of its inputs.
        symbols: symbols whose values are further inputs.
    """

    compiled: Callable[[list[Any]], Sequence[Any]]
    inputs: list[int]
    symbols: list[sympy.Symbol]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A compiled region that serves others of its kind."""

    region: Region
    extracted: ExtractedRegion
    compiled: Callable[[list[Any]], Sequence[Any]]
    guards: Guards


class _Compiler:
    """Compiles regions of one graph, unless an equal region was compiled before.

    Args:
        gm: the graph.
        examples: an example input for each placeholder.
        sizes: the result of ``_sizes``.
        options: options of Inductor.
    """

    def __init__(
        self,
        gm: GraphModule,
        examples: dict[Node, Any],
        sizes: dict[sympy.Symbol, tuple[int, int | None, torch.SymInt]],
        options: dict[str, Any],
    ) -> None:
        self._gm, self._examples, self._options = gm, examples, options
        self._sizes = {symbol: size for symbol, (_, _, size) in sizes.items()}
        self._kinds: list[_Kind] = []

    def compile_kinds(self, regions: Sequence[Region]) -> None:
        """Compile the most general region of each kind: the next one while Inductor waits for compilers of kernels."""
        kinds: list[Region] = []
        for region in regions:
            if not any(region.kind == one.kind for one in kinds):
                kinds.append(_most_general(region, regions))
        self._compile_each(kinds)

    def function(self, region: Region) -> _Function:
        """The compiled function of a region."""
        kind = self._serving(region)
        if kind is None:
            kind = self._compile(region)
        renamed = dict(zip(kind.region.symbols, region.symbols, strict=True))
        inputs = [kind.region.inputs.index(node) for node in kind.extracted.inputs]
        return _Function(kind.compiled, inputs, [renamed[symbol] for symbol in kind.extracted.symbols])

    def _serving(self, region: Region) -> _Kind | None:
        return next((one for one in self._kinds if self._serves(one, region)), None)

    def _serves(self, kind: _Kind, region: Region) -> bool:
        return kind.region.kind == region.kind and kind.guards.hold_for(kind.region.symbols, region.symbols)

    def _compile_each(self, regions: Sequence[Region]) -> None:
        """Compile those of the regions that have not been compiled."""
        left = [region for region in regions if not any(one.region is region for one in self._kinds)]
        if left:
            self._compile(left[0], left[1:])

    def _compile(self, region: Region, others: Sequence[Region] = ()) -> _Kind:
        """Compile a region, and others while Inductor waits."""
        extracted = extract(self._gm, region, self._sizes)
        values = [self._examples[node] if node in self._examples else example(node) for node in extracted.inputs]
        values += [self._sizes[symbol] for symbol in extracted.symbols]
        guards = Guards(self._sizes.values())
        errors: list[Exception] = []

        def meanwhile() -> None:
            with guards.of_another():
                try:
                    self._compile_each(others)
                except Exception as error:
                    errors.append(error)

        with guards, while_waiting(meanwhile):
            compiled = inductor.boxed(inductor.compile_graph(extracted.gm, values, self._options))
        kind = _Kind(region, extracted, compiled, guards)
        self._kinds.append(kind)
        for error in errors:
            if isinstance(error, RestartAnalysis):
                raise error
            log.debug("a region is compiled again, by itself: %r", error, exc_info=error)
            self._compile_each(others)
        return kind


def _most_general(region: Region, regions: Sequence[Region]) -> Region:
    """The region of the same kind with the most symbols: its function does not rely on two of them being equal."""
    return max((one for one in regions if one.kind == region.kind), key=lambda one: len(set(one.symbols)))


def _sizes(placeholders: Sequence[Node]) -> dict[sympy.Symbol, tuple[int, int | None, torch.SymInt]]:
    """For each symbol an input that has it as a size: its place, the dimension, or None for a number, and the size."""
    found: dict[sympy.Symbol, tuple[int, int | None, torch.SymInt]] = {}
    for place, node in enumerate(placeholders):
        value = example_or_none(node)
        sizes = enumerate(value.shape) if isinstance(value, torch.Tensor) else [(None, value)]
        for dim, size in sizes:
            if is_size(size) and (symbol := size.node.expr).is_Symbol and symbol not in found:
                found[symbol] = place, dim, as_size(symbol, size)
    return found


def _needed(node: Node, region: Region) -> bool:
    """Whether a result of a region is used outside of it: that of the last layer may not be, though its kind has it."""
    inside = set(region.nodes)
    return any(user not in inside for user in node.users)


def _freed(gm: GraphModule, regions: Sequence[Region]) -> list[list[Node]]:
    """For each region the results of others that it is the last to use. Outputs of the graph are kept."""
    kept = set(gm.graph.output_node().all_input_nodes)
    found: list[list[Node]] = []
    for region in reversed(regions):
        dead = [node for node in region.inputs if node.op not in ("placeholder", "get_attr") and node not in kept]
        dead = [node for node in dead if isinstance(example_or_none(node), torch.Tensor)]
        kept.update(dead)
        found.append(dead)
    return found[::-1]


def _constant(gm: GraphModule, value: Any) -> Any:
    """An output of the graph that no call computes."""
    if not isinstance(value, Node):
        return value
    if value.op == "get_attr":
        return operator.attrgetter(str(value.target))(gm)
    constant = example(value)
    return int(constant) if isinstance(constant, torch.SymInt) else constant
