"""``innerq_compile.explain``: run a model for a few steps, and say what was done with each attention."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..api import innerq
from ..errors import InnerQError
from ..kernels import layout
from ..kernels.formats import CacheFormat, blocks_for
from ..kernels.internals.dynamo_calls import (
    OptimizedModule,
    compiled_call,
    counters,
    get_compilation_metrics,
    set_compiled_call,
)
from .report import OBSERVERS, SKIPPED, GraphReport, LayerReport, to_dict

_SHADOW = "dense buffer with a quantized shadow"


@dataclasses.dataclass(frozen=True)
class Recompile:
    """A graph that was compiled because an earlier one of the same function did not fit.

    Attributes:
        graph: the number of the graph.
        function: ``name (file:line)`` of the function that was compiled again.
        cause: the guard that failed, in Dynamo's words.
    """

    graph: int
    function: str
    cause: str


@dataclasses.dataclass(frozen=True)
class CacheSize:
    """Bytes of the quantized caches, as they are and as they would be.

    Attributes:
        tokens, batch: of the longest cache.
        held: bytes of all inner tensors, spare capacity included.
        fp16: bytes of the same tokens in float16.
        context_length: a number of tokens.
        at_context: bytes needed for that many, spare capacity left out.
        fp16_at_context: bytes of as many in float16.
        beside_dense: True where the program keeps its dense buffers, too.
    """

    tokens: int
    batch: int
    held: int
    fp16: int
    context_length: int
    at_context: int
    fp16_at_context: int
    beside_dense: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """One attention of the program: what became of it in the graph that decides its speed.

    Attributes:
        report: what became of it, see :class:`LayerReport`.
        graph: the number of that graph: a decode graph where there is one.
        preset: the config in words.
    """

    report: LayerReport
    graph: int
    preset: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found. Prints as a table.

    Attributes:
        rows: one for each attention of the program.
        graphs: the graphs that ran, in the order in which they were compiled.
        recompiles: those of them that replaced an earlier one, and why.
        graph_breaks: why Dynamo split the program, in its words.
        cache: how large the caches are; None where none is quantized.
        remarks: what else a user has to know to read it.
    """

    rows: list[Row]
    graphs: list[GraphReport]
    recompiles: list[Recompile]
    graph_breaks: list[str]
    cache: CacheSize | None
    remarks: list[str]

    @property
    def rewritten(self) -> int:
        """How many of the rows were rewritten."""
        return sum(row.report.rewritten for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "rewritten": self.rewritten,
            "attentions": len(self.rows),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "graphs": [to_dict(graph) for graph in self.graphs],
            "recompiles": [dataclasses.asdict(recompile) for recompile in self.recompiles],
            "graph_breaks": self.graph_breaks,
            "cache": None if self.cache is None else dataclasses.asdict(self.cache),
            "remarks": self.remarks,
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything as JSON text, also written to ``path`` where one is given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page with everything; it needs no network."""
        from .pages import explanation_page

        Path(path).write_text(explanation_page(self), encoding="utf-8")

    def __str__(self) -> str:
        notes: list[str] = []
        parts = [f"{self.rewritten} of {len(self.rows)} attentions work on a quantized cache", ""]
        if self.rows:
            parts += [text_table(COLUMNS, [_cells(row, notes) for row in self.rows]), ""]
        parts += [f"  [{number}] {note}" for number, note in enumerate(notes, 1)]
        parts += [""] if notes else []
        graphs = [
            (str(g.index), g.kind, f"{g.rewritten}/{g.attentions}", str(g.calls), g.cuda_graphs, g.compile_id)
            for g in self.graphs
        ]
        if graphs:
            parts.append(text_table(("graph", "kind", "rewritten", "calls", "CUDA graphs", "compilation"), graphs))
        parts += ["", *self.summary()]
        return "\n".join(parts).rstrip()

    def summary(self) -> list[str]:
        """Recompiles, graph breaks, sizes and remarks, a line each."""
        lines = [
            f"recompiled: graph {recompile.graph}, {recompile.function}: {recompile.cause}"
            for recompile in self.recompiles
        ] or ["recompiles: none"]
        lines += [f"graph break: {reason}" for reason in self.graph_breaks]
        if self.cache is not None:
            size = self.cache
            beside = ", beside the program's own dense buffers" if size.beside_dense else ""
            lines.append(
                f"cache now: {size.held:,} bytes for {size.batch} x {size.tokens:,} tokens, "
                f"{size.held / size.fp16:.2f} of float16 ({size.fp16:,}){beside}"
            )
            lines.append(
                f"cache at {size.context_length:,} tokens: {size.at_context:,} bytes, "
                f"{size.at_context / size.fp16_at_context:.3f} of float16 ({size.fp16_at_context:,})"
            )
        return [*lines, *(f"note: {remark}" for remark in self.remarks)]


def explain(target: Any, /, *args: Any, context_length: int = 32768, **kwargs: Any) -> Explanation:
    """Run a model for a prompt and two more tokens, and say what the compiler did with it.

    Args:
        target: a model, compiled with innerq or not (then it is compiled, with preset ``base``, for this run only). A
            model with a ``generate`` makes three tokens with it; any other is called once. Or a function that runs a
            compiled model as it likes.
        args, kwargs: what ``generate``, the model, or the function is called with.
        context_length: tokens at which the size of the cache is given, too.

    Raises:
        InnerQError: if ``target`` cannot be called, or ``context_length`` is no positive number.
    """
    if not isinstance(context_length, int) or context_length < 1:
        raise InnerQError(f"context_length={context_length!r} is not allowed: it has to be a whole number, 1 or more")
    if not callable(target):
        raise InnerQError(f"{target!r} cannot be explained: it has to be a model, or a function that runs one")
    remarks: list[str] = []
    breaks = dict(counters["graph_break"])
    with _observed() as seen, _compiled(target, remarks), torch.no_grad():
        result = _run(target, args, kwargs, remarks)
    graphs = sorted(seen.graphs, key=lambda graph: graph.index)
    for graph in graphs:
        metrics = compilation_metrics(graph)
        if graph.cuda_graphs == SKIPPED and metrics is not None and metrics.cudagraph_skip_reason:
            graph.cuda_graphs = f"no: {metrics.cudagraph_skip_reason}"
    if not graphs:
        remarks.append(
            "no graph of the backend 'innerq' ran: compile the model with innerq(model), or call a compiled one"
        )
    elif all(graph.kind != "decode" for graph in graphs):
        remarks.append("no decode step ran on a quantized cache")
    rows = _rows(graphs)
    explanation = Explanation(
        rows=rows,
        graphs=graphs,
        recompiles=_recompiles(graphs),
        graph_breaks=[text for text, count in counters["graph_break"].items() if count > breaks.get(text, 0)],
        cache=seen.size(context_length, any(row.report.cache == _SHADOW for row in rows)),
        remarks=remarks,
    )
    del result  # held until here: the caches in it are those that were measured
    return explanation


def _run(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], remarks: list[str]) -> Any:
    generate = getattr(target, "generate", None) if isinstance(target, torch.nn.Module) else None
    if generate is not None:
        tokens = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
        return generate(*args, **{**tokens, **kwargs})
    if isinstance(target, torch.nn.Module):
        remarks.append("the model was called once: pass a function that also decodes to see decode steps")
    return target(*args, **kwargs)


@contextlib.contextmanager
def _compiled(target: Any, remarks: list[str]) -> Iterator[None]:
    """Compile a model that is not, for the time being."""
    plain = isinstance(target, torch.nn.Module) and not isinstance(target, OptimizedModule)
    if not plain or compiled_call(target) is not None:
        yield
        return
    remarks.append("the model was not compiled: it was, with preset 'base', for this run only")
    innerq(target)
    try:
        yield
    finally:
        set_compiled_call(target, None)


# --- what ran -------------------------------------------------------------------------------------------------------


class _Seen:
    """The graphs that ran, and the storages of their caches."""

    def __init__(self) -> None:
        self.graphs: dict[GraphReport, None] = {}
        self.storages: dict[int, Any] = {}

    def __call__(self, report: GraphReport, storages: list[Any]) -> None:
        self.graphs.pop(report, None)
        self.graphs[report] = None  # the one that ran last stands last
        for storage in storages:
            self.storages[id(storage)] = storage

    def size(self, context_length: int, beside_dense: bool) -> CacheSize | None:
        """What the caches of the longest sequence take; those that it was copied from are not counted."""
        found = []
        for storage in self.storages.values():
            state = storage.state
            found.append((int((state[..., layout.START] + state[..., layout.LENGTH]).max()), storage))
        tokens = max((length for length, _ in found), default=0)
        if not tokens:
            return None
        sums = {"held": 0, "fp16": 0, "at_context": 0, "fp16_at_context": 0}
        batch = 0
        for length, storage in found:
            if length != tokens:
                continue
            batch, heads = storage.state.shape[:2]
            fmt, head_dim = storage.format, storage.head_dim
            statistics = (storage.mean is not None) + (storage.norm is not None)
            sums["held"] += storage.nbytes
            sums["fp16"] += 2 * batch * heads * head_dim * length
            sums["at_context"] += layout.cache_bytes(
                fmt, batch, heads, head_dim, storage.dtype, blocks_for(fmt, context_length), statistics=statistics
            )
            sums["fp16_at_context"] += 2 * batch * heads * head_dim * context_length
        return CacheSize(tokens=tokens, batch=batch, context_length=context_length, beside_dense=beside_dense, **sums)


@contextlib.contextmanager
def _observed() -> Iterator[_Seen]:
    seen = _Seen()
    OBSERVERS.append(seen)
    try:
        yield seen
    finally:
        OBSERVERS.remove(seen)


def _recompiles(graphs: list[GraphReport]) -> list[Recompile]:
    found = []
    for graph in graphs:
        metrics = compilation_metrics(graph)
        if metrics is not None and metrics.recompile_reason:
            place = f"{metrics.co_name} ({metrics.co_filename}:{metrics.co_firstlineno})"
            found.append(Recompile(graph.index, place, " ".join(metrics.recompile_reason.split())))
    return found


def compilation_metrics(graph: GraphReport) -> Any:
    """What Dynamo measured while it compiled a graph; None for a graph so old that Dynamo has forgotten it."""
    for metrics in get_compilation_metrics():  # ids begin anew after a reset, so the time tells which one it is
        began, ended = metrics.start_time_us or 0, metrics.end_time_us or 0
        if metrics.compile_id == graph.compile_id and began <= graph.compiled_at <= ended:
            return metrics
    return None


def _rows(graphs: list[GraphReport]) -> list[Row]:
    """One row an attention, from the graph that decides its speed: decode before prefill, later before earlier."""
    rows: dict[tuple[str, str, int], Row] = {}
    rank = {"plain": 0, "prefill": 1, "decode": 2}
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


# --- text -----------------------------------------------------------------------------------------------------------

COLUMNS = ("layer", "source", "match", "cache", "mask", "preset", "keys / values", "key norm", "kernel", "graph")


def _cells(row: Row, notes: list[str]) -> tuple[str, ...]:
    report = row.report

    def short(text: str, head: str) -> str:
        if text == head:
            return text
        if text not in notes:
            notes.append(text)
        return f"{head} [{notes.index(text) + 1}]"

    if not report.rewritten:
        kernel = short(f"not rewritten: {report.reason}", "not rewritten")
        return (report.layer, report.line, report.match, "", report.mask, row.preset, "", "", kernel, str(row.graph))
    kernel = short(report.kernel, report.kernel.partition(":")[0].partition(", on ")[0])
    norm = short(report.key_norm, report.key_norm.partition(",")[0])
    return (
        report.layer,
        report.line,
        report.match,
        report.cache,
        report.mask,
        row.preset,
        bits(report),
        norm,
        kernel,
        str(row.graph),
    )


def bits(report: LayerReport) -> str:
    """The formats of keys and values in short."""
    sides = [CacheFormat.parse(spec) for spec in (report.key, report.value)]
    return " / ".join(f"{side.bits} {side.mode}" if side.quantized else "exact" for side in sides)


def text_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their longest cell; a column that is empty throughout is left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[header[i] for i in kept], *([row[i] for i in kept] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
