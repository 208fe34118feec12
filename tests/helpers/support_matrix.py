"""The families on the page ``docs/support-matrix.md``, from what ``sweep.py`` has found.

python -m tests.helpers.support_matrix            # the page, from the results beside the tests
python -m tests.helpers.support_matrix --sweep    # try all families of the installed transformers first
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.helpers.families import ATTN, Family, Result, families
from tests.helpers.family_overrides import NOTES
from tests.helpers.scripts import script
from tests.helpers.sweep import TOO_LONG, Results, fields_of, result_of, sweep

ROOT = Path(__file__).parents[2]
MATRIX = ROOT / "docs" / "support-matrix.md"
#: What was found. The page is made from it, and tests compare with it what they find.
FOUND = ROOT / "tests" / "models" / "families.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """A family and what became of it.

    Attributes:
        name: class, with the variant if it is one.
        kind: as ``Family.kind``.
        types: names of its configurations, the ``model_type`` of a ``config.json``.
        results: for each of its attention implementations.
    """

    name: str
    kind: str
    types: tuple[str, ...]
    results: dict[str, Result]

    @property
    def fails(self) -> bool:
        """Whether the compiled model, and not the uncompiled one, goes wrong."""
        return any(result.failure for result in self.results.values()) and not self.is_unfinished

    @property
    def is_unfinished(self) -> bool:
        """Whether it took too long: nothing is known of it."""
        return any(result.failure.startswith(TOO_LONG) for result in self.results.values())

    @property
    def problem(self) -> str:
        """Why the uncompiled model does not run."""
        return next((result.problem for result in self.results.values() if result.problem), "")

    @property
    def is_without_cache(self) -> bool:
        return not any(result.caches for result in self.results.values())

    @property
    def is_rewritten(self) -> bool:
        """Whether every attention of a step is, and every cache is quantized."""
        return all(
            result.caches and result.rewritten == result.attentions and result.quantized == result.caches
            for result in self.results.values()
        )

    @property
    def is_recorded(self) -> bool:
        return all(result.recorded == "yes" for result in self.results.values())

    def joined(self, shown: Callable[[Result], str]) -> str:
        """A property of all results, or of each where they differ."""
        cells = {attn: shown(result) for attn, result in self.results.items()}
        if len(set(cells.values())) == 1:
            return next(iter(cells.values()))
        return "; ".join(f"{attn}: {cell or 'none'}" for attn, cell in cells.items())


def rows(wanted: list[Family], results: Results) -> list[Row]:
    """Of families in their order."""
    return [Row(one.name, one.kind, one.types, results[one.name]) for one in wanted if one.name in results]


# --- the page -------------------------------------------------------------------------------------------------------


def page() -> str:
    """The support matrix with the families that are kept beside the tests."""
    return script("docs/regions").filled(MATRIX.read_text(encoding="utf-8"), {"families": lambda: region(*read(FOUND))})


def region(version: str, found: list[Row]) -> str:
    """The tables of families as Markdown."""
    groups = {title: [row for row in found if group(row) == title] for title in GROUPS}
    parts = [_summary(version, found)]
    for title, make in GROUPS.items():
        if groups[title]:
            parts += [f"### {title}", make(groups[title])]
    parts += ["### Remarks", _remarks(found)]
    return "\n\n".join(parts)


def group(row: Row) -> str:
    """The heading that a family stands under."""
    if row.fails:
        return "Wrong"
    if row.is_unfinished:
        return "Not finished"
    if row.problem:
        return "Not tried"
    if row.is_without_cache:
        return "No cache of keys and values"
    if not row.is_rewritten:
        return "Rewritten in part, or not"
    return "Rewritten" if row.is_recorded else "Rewritten, steps not recorded"


def _summary(version: str, found: list[Row]) -> str:
    kinds = list(dict.fromkeys(row.kind for row in found))
    titles = [title for title in GROUPS if any(group(row) == title for row in found)]
    table = [
        [title, *(str(sum(row.kind == kind and group(row) == title for row in found)) for kind in kinds)]
        for title in titles
    ]
    table.append(["all", *(str(sum(row.kind == kind for row in found)) for kind in kinds)])
    return f"Found with transformers {version}:\n\n" + script("docs/regions").table(
        ["families", *kinds], table, right=True
    )


def _compact(found: list[Row]) -> str:
    """Families that differ in their names alone share a line."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for row in found:
        key = (row.kind, ", ".join(row.results), row.joined(lambda result: result.window))
        alike.setdefault(key, []).append(_shown(row))
    cells = [[*key, ", ".join(names)] for key, names in sorted(alike.items(), key=lambda item: _order(item[0]))]
    return script("docs/regions").table(["families", "attention", "sliding window", "classes"], cells)


def _order(key: tuple[str, str, str]) -> tuple[int, bool, bool, str]:
    kind, attn, window = key
    return [*dict.fromkeys(_KINDS)].index(kind), "," not in attn, bool(window), window


def _reasons(of: Callable[[Result], tuple[str, ...]]) -> Callable[[list[Row]], str]:
    """A row for each family, and the list of the reasons with the families that have them."""

    def made(found: list[Row]) -> str:
        names: dict[str, list[str]] = {}
        for row in found:
            for reason in dict.fromkeys(text for result in row.results.values() for text in of(result)):
                names.setdefault(reason, []).append(row.name)
        numbers = {reason: number for number, reason in enumerate(sorted(names, key=lambda r: -len(names[r])), 1)}
        cells = [
            [
                ", ".join(row.types),
                _shown(row),
                ", ".join(row.results),
                row.joined(lambda result: f"{result.rewritten} of {result.attentions}"),
                row.joined(lambda result: result.window),
                row.joined(lambda result: "yes" if result.recorded == "yes" else "no"),
                row.joined(lambda result: ", ".join(str(numbers[reason]) for reason in of(result))),
            ]
            for row in found
        ]
        columns = ["family", "class", "attention", "rewritten", "sliding window", "recorded", "reasons"]
        lines = [
            f"{number}. {reason} ({len(names[reason])} {'family' if len(names[reason]) == 1 else 'families'})"
            for reason, number in numbers.items()
        ]
        return script("docs/regions").table(columns, cells) + "\n\nThe reasons:\n\n" + "\n".join(lines)

    return made


def _unrecorded(result: Result) -> tuple[str, ...]:
    return tuple(text.removeprefix("no: ") for text in result.recorded.split("; ") if text != "yes")


def _errors(of: Callable[[Result], str]) -> Callable[[list[Row]], str]:
    def made(found: list[Row]) -> str:
        cells = [[", ".join(row.types), _shown(row), row.joined(of).replace("|", "\\|")] for row in found]
        return script("docs/regions").table(["family", "class", "error"], cells)

    return made


def _names(found: list[Row]) -> str:
    return ", ".join(_shown(row) for row in found)


def _shown(row: Row) -> str:
    model, comma, variant = row.name.partition(", ")
    return f"`{model}`{comma and f' ({variant})'}"


def _remarks(found: list[Row]) -> str:
    known = {row.name: row for row in found}
    lines = [
        f"- {note}: {_names([known[name] for name in names if name in known])}"
        for note, names in NOTES.items()
        if not known.keys().isdisjoint(names)
    ]
    split = [row for row in found if any(result.graphs > 1 for result in row.results.values())]
    if split:
        graphs = [f"{_shown(row)} ({row.joined(lambda result: str(result.graphs))})" for row in split]
        lines.append(f"- Dynamo splits the program, and a step runs several graphs: {', '.join(graphs)}")
    return "\n".join(lines)


_KINDS = ("decoders", "text and images", "encoder and decoder, or speech")
GROUPS: dict[str, Callable[[list[Row]], str]] = {
    "Wrong": _errors(lambda result: result.failure),
    "Not finished": _errors(lambda result: result.failure),
    "Rewritten": _compact,
    "Rewritten, steps not recorded": _reasons(_unrecorded),
    "Rewritten in part, or not": _reasons(lambda result: result.reasons),
    "No cache of keys and values": _names,
    "Not tried": _errors(lambda result: result.problem),
}


# --- results in a file ----------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[str, list[Row]]:
    """The version of transformers, and the rows."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["transformers"], [
        Row(
            name,
            fields["kind"],
            tuple(fields["types"]),
            {attn: result_of(fields[attn]) for attn in ATTN if attn in fields},
        )
        for name, fields in kept["families"].items()
    ]


def written(version: str, found: list[Row]) -> str:
    """As JSON, a line for each family."""
    lines = []
    for row in found:
        results = {attn: fields_of(result) for attn, result in row.results.items()}
        lines.append(f"{json.dumps(row.name)}: {json.dumps({'kind': row.kind, 'types': row.types, **results})}")
    return f'{{"transformers": "{version}", "families": {{\n' + ",\n".join(lines) + "\n}}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="try all families of the installed transformers first")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(tempfile.gettempdir()) / "innerq_families.json",
        help="file that keeps what a sweep has found, from which it goes on when it was interrupted",
    )
    args = parser.parse_args()
    if args.sweep:
        wanted, version = families(), importlib.import_module("transformers").__version__
        FOUND.write_text(written(version, rows(wanted, sweep(wanted, args.results, args.workers))), encoding="utf-8")
        args.results.unlink()
    MATRIX.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
