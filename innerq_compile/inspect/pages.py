"""The HTML pages of dumps and explanations. Each is one self-contained file."""

from __future__ import annotations

import difflib
import functools
import itertools
import linecache
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .formatting import bits

if TYPE_CHECKING:
    from jinja2 import Environment

    from ..runtime.report import GraphReport
    from .explanation import Row

#: Lines of context shown around changed lines of a graph, and around lines of the user's program.
AROUND = 3

_WHERE = re.compile(r'File "(.+)", line (\d+), in ([^:]+)')

#: A row of a side-by-side view: its kind (``same``, ``changed`` or ``folded``), and the left and right line as
#: ``(text, link)`` or None. In a row of kind ``folded`` the left item is the number of lines that are left out.
DiffRow = tuple[str, Any, Any]


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader  # installed, because torch depends on it

    loader = PackageLoader("innerq_compile.inspect")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def dump_page(graphs: list[dict[str, Any]]) -> str:
    """The HTML page of a dump, from the contents of its ``graph.json`` files."""
    sources = Sources()
    shown = []
    for graph in graphs:
        shots = [
            {"name": shot["name"], "lines": [(text, sources.add(where)) for text, where in shot["lines"]]}
            for shot in graph["snapshots"]
        ]
        steps, idle = [], []
        for before, after in itertools.pairwise(shots):
            rows = side_by_side(before["lines"], after["lines"])
            if rows:
                steps.append({"name": after["name"], "before": before["name"], "rows": rows})
            else:
                idle.append(after["name"])
        layers = [{**layer, "source": sources.add(layer["where"])} for layer in graph["report"]["layers"]]
        shown.append({**graph, "steps": steps, "idle": idle, "shots": shots, "layers": layers})
    return _templates().get_template("dump.html").render(graphs=shown, sources=sources.excerpts())


def explanation_page(rows: Sequence[Row], graphs: Sequence[GraphReport], summary: Sequence[str]) -> str:
    """The HTML page of an explanation."""
    sources = Sources()
    shown = [
        {
            **row.report.to_dict(),
            "source": sources.add(row.report.where),
            "bits": bits(row.report) if row.report.rewritten else "",
            "preset": row.preset,
            "graph": row.graph,
        }
        for row in rows
    ]
    template = _templates().get_template("explanation.html")
    return template.render(rows=shown, graphs=graphs, summary=summary, sources=sources.excerpts())


def side_by_side(before: list[Any], after: list[Any]) -> list[DiffRow]:
    """The lines of two graphs side by side, with runs of equal lines folded. Empty if the graphs are equal."""
    texts = [[text for text, _ in lines] for lines in (before, after)]
    rows: list[DiffRow] = []
    opcodes = difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes()
    if all(tag == "equal" for tag, *_ in opcodes):
        return []
    for index, (tag, a, b, c, d) in enumerate(opcodes):
        if tag == "equal":
            head = AROUND if index else 0
            tail = AROUND if index < len(opcodes) - 1 else 0
            pairs = list(zip(before[a:b], after[c:d], strict=True))
            if len(pairs) > head + tail + 1:
                rows += [("same", *pair) for pair in pairs[:head]]
                rows.append(("folded", len(pairs) - head - tail, None))
                rows += [("same", *pair) for pair in pairs[len(pairs) - tail :]]
            else:
                rows += [("same", *pair) for pair in pairs]
            continue
        left, right = before[a:b], after[c:d]
        for i in range(max(len(left), len(right))):
            rows.append(
                ("changed", left[i] if i < len(left) else None, right[i] if i < len(right) else None),
            )
    return rows


class Sources:
    """Collects the lines of the user's program that a page links to."""

    def __init__(self) -> None:
        self._lines: dict[str, set[int]] = {}

    def add(self, where: str) -> dict[str, str] | None:
        """Add a line and return the link to it; None for an empty ``where``.

        Args:
            where: a line of the user's program as ``source_line`` describes it.
        """
        found = _WHERE.match(where)
        if found is None:
            return None
        path, line, function = found[1], int(found[2]), found[3]
        self._lines.setdefault(path, set()).add(line)
        file = list(self._lines).index(path)
        return {
            "anchor": f"source-{file}-{line}",
            "label": f"{path.rsplit('/', 1)[-1]}:{line}",
            "title": f"{path}:{line} in {function}",
        }

    def excerpts(self) -> list[dict[str, Any]]:
        """The excerpts of each file: its path, and runs of adjacent lines as ``(number, text, anchor or "")``."""
        files = []
        for index, (path, wanted) in enumerate(self._lines.items()):
            shown = sorted({n for line in wanted for n in range(line - AROUND, line + AROUND + 1) if n > 0})
            runs: list[list[tuple[int, str, str]]] = []
            for number in shown:
                text = linecache.getline(path, number)
                if not text and number not in wanted:
                    continue
                if not runs or number != runs[-1][-1][0] + 1:
                    runs.append([])
                anchor = f"source-{index}-{number}" if number in wanted else ""
                runs[-1].append((number, text.rstrip("\n"), anchor))
            files.append({"path": path, "runs": runs})
        return files
