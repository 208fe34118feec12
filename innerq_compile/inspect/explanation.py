"""The result of :func:`innerq_compile.explain`: rows, graphs and sizes, as a table, JSON or an HTML page."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ..runtime.report import CudaGraphs, GraphKind, GraphReport, LayerReport
from .formatting import bits, text_table
from .pages import explanation_page

COLUMNS = (
    "layer",
    "source",
    "match",
    "cache",
    "window",
    "mask",
    "preset",
    "keys / values",
    "key norm",
    "kernel",
    "graph",
)


@dataclasses.dataclass(frozen=True)
class Recompile:
    """A graph that was compiled because a guard of an earlier one of the same function failed.

    Attributes:
        graph: Index of the graph, see :attr:`GraphReport.index`.
        function: The function that was recompiled, as ``name (file:line)``.
        cause: The guard that failed, as Dynamo reports it.
    """

    graph: int
    function: str
    cause: str


@dataclasses.dataclass(frozen=True)
class CacheSize:
    """Bytes of all quantized caches of a model, now and at a given number of tokens.

    Attributes:
        tokens: Length of the caches.
        batch: Number of sequences.
        held: Bytes of all inner tensors, unused capacity included.
        fp16: Bytes that the same tokens would take in float16.
        context_length: The number of tokens for which ``at_context`` is given.
        at_context: Bytes needed for ``context_length`` tokens, without unused capacity.
        fp16_at_context: Bytes that ``context_length`` tokens would take in float16.
        beside_dense: Whether the program keeps its dense cache as well, so that no memory is saved.
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
    """One attention of the program, as it was compiled in the graph that matters most for speed.

    Attributes:
        report: How it was compiled.
        graph: Index of the graph: that of a decode graph if one ran.
        preset: The config in short, as ``"base, recent=128"``.
    """

    report: LayerReport
    graph: int
    preset: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The result of :func:`explain`. ``str`` gives it as a table.

    Attributes:
        rows: One for each attention of the program.
        graphs: Reports of the graphs that ran, in the order in which they were compiled.
        recompiles: The graphs among them that are recompilations, and the guards that failed.
        graph_breaks: Reasons of the graph breaks, as Dynamo reports them.
        cache: Sizes of the caches; None if no cache is quantized.
        remarks: Notes on the run, such as that the model was compiled for this run only.
    """

    rows: list[Row]
    graphs: list[GraphReport]
    recompiles: list[Recompile]
    graph_breaks: list[str]
    cache: CacheSize | None
    remarks: list[str]

    @property
    def rewritten(self) -> int:
        """Number of attentions that were rewritten."""
        return sum(row.report.rewritten for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The whole explanation as a dict of JSON values."""
        return {
            "rewritten": self.rewritten,
            "attentions": len(self.rows),
            "rows": [{"report": row.report.to_dict(), "graph": row.graph, "preset": row.preset} for row in self.rows],
            "graphs": [graph.to_dict() for graph in self.graphs],
            "recompiles": [dataclasses.asdict(recompile) for recompile in self.recompiles],
            "graph_breaks": self.graph_breaks,
            "cache": None if self.cache is None else dataclasses.asdict(self.cache),
            "remarks": self.remarks,
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole explanation as JSON text.

        Args:
            path: A file to write it to as well.
        """
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the whole explanation as one self-contained HTML page.

        Args:
            path: The file to write.
        """
        Path(path).write_text(explanation_page(self.rows, self.graphs, self.summary()), encoding="utf-8")

    def __str__(self) -> str:
        notes: list[str] = []
        parts = [f"{self.rewritten} of {len(self.rows)} attentions work on a quantized cache", ""]
        if self.rows:
            parts += [text_table(COLUMNS, [_cells(row, notes) for row in self.rows]), ""]
        parts += [f"  [{number}] {note}" for number, note in enumerate(notes, 1)]
        parts += [""] if notes else []
        graphs = [
            (
                str(g.index),
                str(g.kind),
                f"{g.rewritten}/{g.attentions}",
                str(g.calls),
                g.cuda_graphs.short,
                g.compile_id,
            )
            for g in self.graphs
        ]
        if graphs:
            parts.append(text_table(("graph", "kind", "rewritten", "calls", "CUDA graphs", "compilation"), graphs))
        parts += ["", *self.summary()]
        return "\n".join(parts).rstrip()

    def summary(self) -> list[str]:
        """CUDA graphs, recompilations, graph breaks, sizes and remarks, one line each."""
        lines = self._cuda_graphs()
        lines += [f"graph {graph.index}: {graph.regions}" for graph in self.graphs if graph.regions]
        lines += [
            f"recompiled: graph {recompile.graph}, {recompile.function}: {recompile.cause}"
            for recompile in self.recompiles
        ] or ["recompiles: none"]
        lines += [f"graph break: {reason}" for reason in self.graph_breaks]
        if self.cache is not None:
            size = self.cache
            beside = ", in addition to the program's own dense buffers" if size.beside_dense else ""
            lines.append(
                f"cache now: {size.held:,} bytes for {size.batch} x {size.tokens:,} tokens, "
                f"{size.held / size.fp16:.2f} of float16 ({size.fp16:,}){beside}"
            )
            lines.append(
                f"cache at {size.context_length:,} tokens: {size.at_context:,} bytes, "
                f"{size.at_context / size.fp16_at_context:.3f} of float16 ({size.fp16_at_context:,})"
            )
        return [*lines, *(f"note: {remark}" for remark in self.remarks)]

    def _cuda_graphs(self) -> list[str]:
        """How decode steps run, a line for each way."""
        ways: dict[CudaGraphs, list[str]] = {}
        for graph in self.graphs:
            if graph.kind is GraphKind.DECODE:
                ways.setdefault(graph.cuda_graphs, []).append(str(graph.index))
        if len(ways) == 1:
            return [f"CUDA graphs of decode steps: {next(iter(ways))}"]
        return [f"CUDA graphs of decode steps (graph {', '.join(graphs)}): {way}" for way, graphs in ways.items()]


def _cells(row: Row, notes: list[str]) -> tuple[str, ...]:
    """The cells of a row. Texts too long for the table are appended to ``notes`` and referred to by number."""
    report = row.report

    def noted(short: str, long: str) -> str:
        if long == short:
            return short
        if long not in notes:
            notes.append(long)
        return f"{short} [{notes.index(long) + 1}]"

    cache = key_norm = formats = ""
    if not report.rewritten:
        kernel = noted("not rewritten", f"not rewritten: {report.reason}")
    else:
        kernel = noted(report.kernel.short, str(report.kernel))
        cache, formats = str(report.cache or ""), bits(report)
        key_norm = "" if report.key_norm is None else noted(report.key_norm.short, str(report.key_norm))
    return (
        report.layer,
        report.line,
        report.match,
        cache,
        report.window,
        report.mask,
        row.preset,
        formats,
        key_norm,
        kernel,
        str(row.graph),
    )
