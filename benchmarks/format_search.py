"""Fidelity of many cache formats on a real model, by emulated teacher-forced decoding.

    python benchmarks/format_search.py --data ../fidelity-data --device cuda --time-budget 400 --json search.json

``--data`` is what ``benchmarks/pack_model.py`` wrote. Formats are tried in order of importance until the time is
over. ``held out`` is the mean over the second half of the documents, on which no format was chosen.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
import traceback
from pathlib import Path

import tables
from emulation.bench import Bench, add_options
from emulation.variants import variants


def short(name: str) -> str:
    """A shorter name, without defaults; ``8+8`` is an e4m3 scale and a zero point relative to it."""
    for long, brief in (
        (" centre=mean power=0.5", ""),
        ("scale=e4m3 zero=rel8", "8+8"),
        ("scale=pair8 zero=pair8", "pair8"),
        ("feedback", "fb"),
    ):
        name = name.replace(long, brief)
    return name


def show(rows: list[dict], lines: int) -> None:
    """Print known formats and pairs in the order tried, then single sides, the best first."""
    pairs = [r for r in rows if r["key_bits"] < 16 and r["value_bits"] < 16 and " exact" not in r["name"]]
    keys = sorted((r for r in rows if r["key_bits"] < 16 <= r["value_bits"]), key=lambda r: r["kl"])
    values = sorted((r for r in rows if r["value_bits"] < 16 <= r["key_bits"]), key=lambda r: r["kl"])

    def part(title, chosen):
        found = []
        for r in chosen:
            held = "-" if r["kl_held_out"] is None else f"{r['kl_held_out']:.5f}"
            bits = f"{r['key_bits']:.2f}/{r['value_bits']:.2f}"
            found.append((short(r["name"])[:95], bits, f"{r['kl']:.5f}", held, f"{100 * r['top1']:.1f}"))
        tables.show(("format", "bits K/V", "KL", "KL, held out", "top-1 %"), found, title=title)

    part("both sides", pairs[: lines * 5 // 10])
    left = lines - min(len(pairs), lines * 5 // 10)
    for title, side in (("keys", keys), ("values", values)):
        for codes in (2, 3, 4):
            some = [r for r in side if re.search(rf"\[[a-z_]+{codes}[ \]]", r["name"])]
            if some:
                part(f"{title} alone, {codes}-bit codes, best", some[: max(3, left // 6)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--time-budget", type=float, default=400.0, help="seconds from start")
    parser.add_argument("--only", default="", help="only formats whose name contains this")
    parser.add_argument("--limit", type=int, default=10**6, help="number of formats to try")
    parser.add_argument("--lines", type=int, default=84, help="lines of the table")
    args = parser.parse_args()
    began = time.perf_counter()
    bench = Bench.load(args)
    full = statistics.fmean(bench.nll_full)
    print(f"{len(bench.names)} documents, setup {time.perf_counter() - began:.1f} s, full-precision nll {full:.4f}")
    rows, failed = [], []
    formats = [f for f in variants(bench.layers) if args.only in f.name][: args.limit]
    for fmt in formats:
        if time.perf_counter() - began > args.time_budget:
            break
        try:
            rows.append(bench.row(fmt))
        except Exception as error:
            failed.append((fmt.name, traceback.format_exc()))
            print(f"failed: {fmt.name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        if args.json and len(rows) % 20 == 0:
            write(args.json, bench, rows, failed)
    if args.json:
        write(args.json, bench, rows, failed)
    show(rows, args.lines)
    print(f"{len(rows)} of {len(formats)} formats in {time.perf_counter() - began:.0f} s, {len(failed)} failed")


def write(file: Path, bench: Bench, rows: list[dict], failed: list[tuple[str, str]]) -> None:
    file.write_text(json.dumps({**bench.head(), "rows": rows, "failed": failed}))


if __name__ == "__main__":
    main()
