"""What :func:`innerq_compile.explain` gives back: rows, graphs, sizes, as a table, JSON and a page."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ..runtime.report import GraphReport, LayerReport
from .pages import explanation_page
from .words import bits, text_table

COLUMNS = ("layer", "source", "match", "cache", "mask", "preset", "keys / values", "key norm", "kernel", "graph")


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
            "rows": [{"report": row.report.to_dict(), "graph": row.graph, "preset": row.preset} for row in self.rows],
            "graphs": [graph.to_dict() for graph in self.graphs],
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
        Path(path).write_text(explanation_page(self.rows, self.graphs, self.summary()), encoding="utf-8")

    def __str__(self) -> str:
        notes: list[str] = []
        parts = [f"{self.rewritten} of {len(self.rows)} attentions work on a quantized cache", ""]
        if self.rows:
            parts += [text_table(COLUMNS, [_cells(row, notes) for row in self.rows]), ""]
        parts += [f"  [{number}] {note}" for number, note in enumerate(notes, 1)]
        parts += [""] if notes else []
        graphs = [
            (f"{g.index}", f"{g.kind}", f"{g.rewritten}/{g.attentions}", f"{g.calls}", f"{g.cuda_graphs}", g.compile_id)
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


def _cells(row: Row, notes: list[str]) -> tuple[str, ...]:
    """A line of the table. What is too long for it becomes one of the ``notes`` below."""
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
        report.mask,
        row.preset,
        formats,
        key_norm,
        kernel,
        str(row.graph),
    )
