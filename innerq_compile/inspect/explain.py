"""``innerq_compile.explain``: run a model for a few steps and report how each of its attentions was compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..api import innerq
from ..cache.storage import CacheStorage
from ..errors import InnerQError
from ..kernels import layout
from ..kernels.formats import blocks_for
from ..kernels.internals.dynamo_calls import (
    OptimizedModule,
    compiled_call,
    counters,
    get_compilation_metrics,
    set_compiled_call,
)
from ..runtime.report import RUN_OBSERVERS, CacheForm, CudaGraphs, CudaGraphUse, GraphKind, GraphReport
from .explanation import CacheSize, Explanation, Recompile, Row


def explain(target: Any, /, *args: Any, context_length: int = 32768, **kwargs: Any) -> Explanation:
    """Run a model for a few steps and report how each of its attentions was compiled.

    Args:
        target: A model, or a function that runs a compiled model. A model that is not compiled yet is compiled with
            preset ``base`` for this run only. A model with a method ``generate`` generates three tokens; any other
            model is called once.
        *args: Positional arguments of ``generate``, the model or the function.
        context_length: A number of tokens for which to compute the size of the cache, besides its size after the run.
        **kwargs: Keyword arguments of ``generate``, the model or the function.

    Returns:
        An :class:`Explanation`. ``print`` shows it as a table.

    Raises:
        InnerQError: If ``target`` is not callable, or ``context_length`` is not a positive whole number.

    Example:
        >>> print(explain(model, **tokenizer("Hello", return_tensors="pt")))
    """
    if not isinstance(context_length, int) or context_length < 1:
        raise InnerQError(f"context_length={context_length!r} is not allowed: it has to be a whole number, 1 or more")
    if not callable(target):
        raise InnerQError(f"{target!r} cannot be explained: it has to be a model or a function that runs one")
    remarks: list[str] = []
    breaks = dict(counters["graph_break"])
    with _observed() as seen, _compiled(target, remarks), torch.no_grad():
        result = _run(target, args, kwargs, remarks)
    graphs = sorted(seen.graphs, key=lambda graph: graph.index)
    for graph in graphs:
        metrics = compilation_metrics(graph)
        if graph.cuda_graphs.use is CudaGraphUse.SKIPPED and metrics is not None and metrics.cudagraph_skip_reason:
            graph.cuda_graphs = CudaGraphs(CudaGraphUse.NOT_USED, metrics.cudagraph_skip_reason)
    if not graphs:
        remarks.append(
            "no graph compiled with backend='innerq' ran: compile the model with innerq(model), or call a compiled one"
        )
    elif all(graph.kind is not GraphKind.DECODE for graph in graphs):
        remarks.append("no decode step ran on a quantized cache")
    rows = _rows(graphs)
    explanation = Explanation(
        rows=rows,
        graphs=graphs,
        recompiles=_recompiles(graphs),
        graph_breaks=[text for text, count in counters["graph_break"].items() if count > breaks.get(text, 0)],
        cache=seen.size(context_length, any(row.report.cache is CacheForm.SHADOW for row in rows)),
        remarks=remarks,
    )
    del result  # kept alive until here, because it may hold the caches whose sizes are reported
    return explanation


def _run(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], remarks: list[str]) -> Any:
    generate = getattr(target, "generate", None) if isinstance(target, torch.nn.Module) else None
    if generate is not None:
        tokens = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
        return generate(*args, **{**tokens, **kwargs})
    if isinstance(target, torch.nn.Module):
        remarks.append("the model was called once: to see decode steps, pass a function that runs them")
    return target(*args, **kwargs)


@contextlib.contextmanager
def _compiled(target: Any, remarks: list[str]) -> Iterator[None]:
    """Compile ``target`` temporarily if it is a model that is not compiled yet."""
    plain = isinstance(target, torch.nn.Module) and not isinstance(target, OptimizedModule)
    if not plain or compiled_call(target) is not None:
        yield
        return
    remarks.append("the model was not compiled yet: it was compiled with preset 'base' for this run only")
    innerq(target)
    try:
        yield
    finally:
        set_compiled_call(target, None)


# --- what ran -------------------------------------------------------------------------------------------------------


class _Seen:
    """Collects the graphs that run, in the order of their last call, and the storages of their caches."""

    def __init__(self) -> None:
        self.graphs: dict[GraphReport, None] = {}
        self.storages: dict[int, CacheStorage] = {}

    def __call__(self, report: GraphReport, storages: list[CacheStorage]) -> None:
        self.graphs.pop(report, None)
        self.graphs[report] = None  # re-inserted, so that it is last
        for storage in storages:
            self.storages[id(storage)] = storage

    def size(self, context_length: int, beside_dense: bool) -> CacheSize | None:
        """The total size of the longest caches. Shorter ones are earlier copies of the same caches, and not counted."""
        found = []
        for storage in self.storages.values():
            found.append((int(layout.ends(storage.tensors.state).max()), storage))
        tokens = max((length for length, _ in found), default=0)
        if not tokens:
            return None
        sums = {"held": 0, "fp16": 0, "at_context": 0, "fp16_at_context": 0}
        batch = 0
        for length, storage in found:
            if length != tokens:
                continue
            batch, heads = storage.batch, storage.heads
            fmt, head_dim = storage.format, storage.head_dim
            statistics = (storage.tensors.mean is not None) + (storage.tensors.norm is not None)
            sums["held"] += storage.nbytes
            sums["fp16"] += 2 * batch * heads * head_dim * length
            held, blocks = head_dim + fmt.zeros, blocks_for(fmt, context_length)
            sums["at_context"] += layout.cache_bytes(
                fmt, batch, heads, held, storage.dtype, blocks, statistics=statistics
            )
            sums["fp16_at_context"] += 2 * batch * heads * head_dim * context_length
        return CacheSize(tokens=tokens, batch=batch, context_length=context_length, beside_dense=beside_dense, **sums)


@contextlib.contextmanager
def _observed() -> Iterator[_Seen]:
    seen = _Seen()
    with RUN_OBSERVERS.holding(seen):
        yield seen


def _recompiles(graphs: list[GraphReport]) -> list[Recompile]:
    found = []
    for graph in graphs:
        metrics = compilation_metrics(graph)
        if metrics is not None and metrics.recompile_reason:
            place = f"{metrics.co_name} ({metrics.co_filename}:{metrics.co_firstlineno})"
            found.append(Recompile(graph.index, place, " ".join(metrics.recompile_reason.split())))
    return found


def compilation_metrics(graph: GraphReport) -> Any:
    """Dynamo's metrics of the compilation of a graph; None if Dynamo, which keeps the latest ones, has dropped them."""
    for metrics in get_compilation_metrics():  # compile ids restart after a reset, so the time is compared as well
        began, ended = metrics.start_time_us or 0, metrics.end_time_us or 0
        if metrics.compile_id == graph.compile_id and began <= graph.compiled_at <= ended:
            return metrics
    return None


def _rows(graphs: list[GraphReport]) -> list[Row]:
    """One row for each attention, from the graph that matters most for speed: decode before prefill, latest first."""
    rows: dict[tuple[str, str, int], Row] = {}
    rank = {GraphKind.PLAIN: 0, GraphKind.PREFILL: 1, GraphKind.DECODE: 2}
    chosen: dict[tuple[str, str, int], int] = {}
    for graph in graphs:
        seen: dict[tuple[str, str], int] = {}
        for layer in graph.layers:
            place = (layer.layer, layer.where)
            seen[place] = seen.get(place, 0) + 1
            key = (*place, seen[place])
            if key not in rows or rank[graph.kind] >= chosen[key]:
                rows[key], chosen[key] = Row(layer, graph.index, graph.config), rank[graph.kind]
    return list(rows.values())
