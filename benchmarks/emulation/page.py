"""Results of ``fidelity.py`` as the Markdown of ``docs/fidelity.md``, a section for each model."""

from __future__ import annotations

import math
from pathlib import Path

BEGIN, END = "<!-- results: benchmarks/fidelity.py --from-json ... --page -->", "<!-- end of results -->"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def _figures(rows: list[dict]) -> list[str]:
    made = []
    for row in rows:
        held_out = "-" if row["kl_held_out"] is None else f"{row['kl_held_out']:.4f}"
        bits = f"{row['key_bits']:.2f} / {row['value_bits']:.2f}"
        last = [f"{100 * row['top1']:.1f}", f"{math.exp(row['nll']):.3f}"]
        made.append([row["name"], bits, f"{row['kl']:.4f}", held_out, *last])
    return _table(["format", "bits K / V", "KL", "held out", "top-1 %", "perplexity"], made)


def _compared(entries: list[dict]) -> list[str]:
    made = []
    for e in entries:
        cells = [e["name"].removeprefix("preset "), f"{e['bits']:.2f}"]
        cells += [e["baseline"], f"{e['ratio']:.2f}"] if "ratio" in e else ["-"] * 2
        cells += [f"{e['peer']} ({e['peer_bits']:.2f})", f"{e['peer_ratio']:.2f}"] if "peer" in e else ["-"] * 2
        made.append(cells)
    head = ["preset", "bits", "published format", "KL, relative to it", "best KIVI-like of no more bits"]
    return _table([*head, "KL, relative to it"], made)


def _retrieval(found: dict[str, dict]) -> list[str]:
    tasks = list(next(iter(found.values())))
    made = []
    for name, by_task in found.items():
        cells = []
        for task in tasks:
            r, full = by_task[task], found["full precision"][task]["right"]
            share = f"{100 * r['kept'] / full:.0f}%" if full else "-"
            cells.append(f"{r['right']} of {r['asked']}, {share} kept")
        made.append([name, *cells])
    return _table(["right answers, and share of full precision's that are kept", *tasks], made)


def _steps(found: list[dict]) -> list[str]:
    made = [[f["name"], f"{f['stepped']:.6f}", f"{f['emulated']:.6f}", f"{f['difference']:.1e}"] for f in found]
    return _table(["the product, one token at a time", "KL stepped", "KL emulated", "difference"], made)


def section(result: dict) -> str:
    """One model's results.

    Raises:
        SystemExit: for results without the name of their model.
    """
    if "model" not in result:
        raise SystemExit("the results do not name their model: measure again with this fidelity.py")
    full = math.exp(sum(result["nll_full"]) / len(result["nll_full"]))
    lines = [
        f"### {result['model']}",
        "",
        f"{len(result['documents'])} documents, {result['positions']:,} decoded positions; {result['device']}, torch "
        f"{result['torch']}; {result['quantized_layers']} of {result['layers']} layers have a quantized cache; "
        f"perplexity in full precision {full:.3f}.",
        "",
        *_figures(result["rows"]),
    ]
    if result["compared"]:
        lines += _compared(result["compared"])
    if result.get("retrieval"):
        lines += _retrieval(result["retrieval"])
    if result.get("step_by_step"):
        lines += _steps(result["step_by_step"])
    return "\n".join(lines)


def write(page: Path, results: list[dict]) -> None:
    """Replace what is between the two marks of a page by the sections of ``results``.

    Raises:
        SystemExit: for a page without the marks, or with one of them twice.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{page} needs the line {BEGIN!r} once and {END!r} once behind it")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(before + BEGIN + "\n\n" + "\n".join(map(section, results)) + "\n" + END + after)
