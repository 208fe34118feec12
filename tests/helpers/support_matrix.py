"""The families on the page ``docs/support-matrix.md``, from what ``sweep.py`` has found.

python -m tests.helpers.support_matrix            # the page, from the results beside the tests
python -m tests.helpers.support_matrix --sweep    # try all families of the installed transformers first
python -m tests.helpers.support_matrix --sweep "FalconForCausalLM, ALiBi" T5ForConditionalGeneration    # only these
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Container
from pathlib import Path

from tests.helpers.families import ATTN, NEEDS, ORDER, Family, Result, families
from tests.helpers.family_overrides import NOTES
from tests.helpers.scripts import script
from tests.helpers.sweep import LIMIT, TOO_LONG, Results, fields_of, result_of, sweep

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
        """Whether the compiled model, and not the uncompiled one, goes wrong, whatever else took too long."""
        return any(result.failure and not _took_too_long(result) for result in self.results.values())

    @property
    def is_unfinished(self) -> bool:
        """Whether one of its results took too long: nothing is known of that."""
        return any(_took_too_long(result) for result in self.results.values())

    @property
    def problem(self) -> str:
        """Why the uncompiled model does not run."""
        return next((result.problem for result in self.results.values() if result.problem), "")

    @property
    def needs_package(self) -> bool:
        """Whether it is not known how it does because a package is not installed."""
        return self.problem.startswith(NEEDS)

    @property
    def is_variant(self) -> bool:
        return ", " in self.name

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


def _took_too_long(result: Result) -> bool:
    return result.failure.startswith(TOO_LONG)


def rows(wanted: list[Family], results: Results) -> list[Row]:
    """Of families in their order."""
    return [Row(one.name, one.kind, one.types, results[one.name]) for one in wanted if one.name in results]


# --- what is found again --------------------------------------------------------------------------------------------


def differences(found: list[Row], page: list[Row]) -> list[str]:
    """What differs from the page, found with the same version of transformers.

    That an uncompiled model does not run is compared, but not its error's text. Families that need a package which was
    not there for the page are left out. What took too long differs from any result.
    """
    new, old = ({row.name: row for row in rows} for rows in (found, page))
    left_out = {name for name, row in old.items() if row.needs_package}
    return [
        f'{name}: {new.get(name)} and not {old.get(name)}; run python -m tests.helpers.support_matrix --sweep "{name}"'
        for name in dict.fromkeys((*old, *new))
        if name not in left_out
        and (_compared(new.get(name)) != _compared(old.get(name)) or (name in new and new[name].is_unfinished))
    ]


def losses(found: list[Row], page: list[Row], existing: Container[str]) -> list[str]:
    """What is less than on the page, with another version of transformers.

    Each family that was rewritten whole, and exists there, is to be tried, and at least as many of its attentions and
    caches are to be rewritten and quantized.

    Args:
        found: by this version.
        page: by that of the page.
        existing: names of the families of this version.
    """
    new = {row.name: row for row in found}
    texts = []
    for row in page:
        if row.problem or row.fails or not row.is_rewritten or row.name not in existing:
            continue
        if row.name not in new or new[row.name].problem or new[row.name].is_unfinished:
            texts.append(
                f'{row.name} was not tried: {new.get(row.name)}; run python -m tests.helpers.sweep "{row.name}"'
            )
            continue
        least = [min(getattr(one, name) for one in row.results.values()) for name in ("rewritten", "quantized")]
        for attn, one in new[row.name].results.items():
            if one.rewritten < least[0] or one.quantized < least[1]:
                texts.append(f"{row.name} {attn}: {one} is less than {row.results}")
    return texts


def _compared(row: Row | None) -> Row | None:
    if row is None:
        return None
    results = {a: Result(problem="some") if one.problem else one for a, one in row.results.items()}
    return dataclasses.replace(row, results=results)


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
        return "Not known"
    if row.is_without_cache:
        return "No cache of keys and values"
    if not row.is_rewritten:
        return "Rewritten in part, or not"
    return "Rewritten" if row.is_recorded else "Rewritten, steps not recorded"


def _summary(version: str, found: list[Row]) -> str:
    variants = [row for row in found if row.is_variant]
    found = [row for row in found if not row.is_variant]
    kinds = [kind for kind in ORDER if any(row.kind == kind for row in found)]
    titles = [title for title in GROUPS if any(group(row) == title for row in found)]
    table = [
        [title, *(str(sum(row.kind == kind and group(row) == title for row in found)) for kind in kinds)]
        for title in titles
    ]
    table.append(["all", *(str(sum(row.kind == kind for row in found)) for kind in kinds)])
    return (
        f"Found with transformers {version}:\n\n"
        + script("docs/regions").table(["families", *kinds], table, right=True)
        + f"\n\nThe tables below also have variants, which are not counted here: {_names(variants)}."
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
    return ORDER.index(kind), "," not in attn, bool(window), window


def _reasons(of: Callable[[Result], tuple[str, ...]]) -> Callable[[list[Row]], str]:
    """A row for each family, and the list of the reasons with the families that have them."""

    def made(found: list[Row]) -> str:
        names: dict[str, list[str]] = {}
        for row in found:
            for reason in shown_reasons(row, of):
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


def shown_reasons(row: Row, of: Callable[[Result], tuple[str, ...]] | None = None) -> list[str]:
    """The reasons that the page gives for a family: ``of`` its results, by default those of its group."""
    reasons = of or REASONS.get(group(row), lambda result: ())
    return list(dict.fromkeys(text for result in row.results.values() for text in reasons(result)))


def _unrecorded(result: Result) -> tuple[str, ...]:
    return tuple(text.removeprefix("no: ") for text in result.recorded.split("; ") if text != "yes")


def _errors(of: Callable[[Result], str]) -> Callable[[list[Row]], str]:
    def made(found: list[Row]) -> str:
        cells = [[", ".join(row.types), _shown(row), row.joined(of).replace("|", "\\|")] for row in found]
        return script("docs/regions").table(["family", "class", "error"], cells)

    return made


def _unknown(found: list[Row]) -> str:
    """Families whose uncompiled model does not run."""
    text = (
        "These were tried, but the uncompiled model did not run here: on a configuration that is made small by the "
        "names of its fields, with inputs that are made by a rule as well, and without the packages that are named. "
        "Nothing is known of the compiled model."
    )
    table = _errors(lambda result: result.problem)(found)
    return f"{text}\n\n{table}"


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


#: The reasons that the page gives in a group.
REASONS: dict[str, Callable[[Result], tuple[str, ...]]] = {
    "Rewritten, steps not recorded": _unrecorded,
    "Rewritten in part, or not": lambda result: result.reasons,
}
GROUPS: dict[str, Callable[[list[Row]], str]] = {
    "Wrong": _errors(lambda result: result.failure),
    "Not finished": _errors(lambda result: result.failure),
    "Rewritten": _compact,
    **{title: _reasons(of) for title, of in REASONS.items()},
    "No cache of keys and values": _names,
    "Not known": _unknown,
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
    parser.add_argument(
        "--sweep",
        nargs="*",
        metavar="NAME",
        help="try families of the installed transformers first: these, or all without any",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(tempfile.gettempdir()) / "innerq_families.json",
        help="file that keeps what a sweep has found, from which it goes on when it was interrupted",
    )
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds for each, on a busy machine more")
    args = parser.parse_args()
    if args.sweep is not None:
        wanted, version = families(), importlib.import_module("transformers").__version__
        known, found = read(FOUND)
        if unknown := set(args.sweep).difference(one.name for one in wanted):
            parser.error(f"the installed transformers has no {', '.join(sorted(unknown))}")
        if args.sweep and known != version:
            parser.error(f"the page is of transformers {known}, this is {version}: try all, without names")
        tried = [one for one in wanted if not args.sweep or one.name in args.sweep]
        results = {row.name: row.results for row in found} if args.sweep else {}
        swept = sweep(tried, args.results, args.workers, limit=args.limit)
        results.update({one.name: swept[one.name] for one in tried})
        FOUND.write_text(written(version, rows(wanted, results)), encoding="utf-8")
        args.results.unlink(missing_ok=True)
    MATRIX.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
