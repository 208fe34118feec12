"""Tokens a second of ``generate()``, by architecture: innerq against what a user had before.

    python benchmarks/architectures.py --fill --jobs 4                        # fills the compile caches on disk
    python benchmarks/architectures.py --json out.json                        # all models and sides, on a GPU
    python benchmarks/architectures.py --models gemma3 gpt-oss --sides innerq static --tokens 32768 --layers 12
    python benchmarks/architectures.py --tiny --device cpu --models llama     # a smoke test

Models have the sizes of published ones, random weights in bfloat16 and ``--layers`` layers, both kinds of them where
layers differ. Sides: ``innerq`` is ``innerq(model)``; ``eager`` compiles nothing; ``static`` is ``generate`` with
``cache_implementation="static"``, which compiles its steps on a GPU; ``compile`` is ``model.compile()``.

Each side of a model is a process of its own, which makes the model and answers three requests of the same length. A
process that fails is a row with its last line. Reported are the seconds from the call of ``innerq`` (or of another
side) to the first token of the first request, with the compile caches as the process finds them on disk; the median
step of the last half of the last request, by the times at which ``generate`` hands out tokens, which it has brought to
the CPU then; and the bytes that the cache holds at the end, room that is not used yet included.

*Of the limit* is how much of the step it would take to only read weights and cache once: the weights of a step are all
parameters but embeddings that are looked up in, and of experts those that ``--batch`` tokens reach if they are routed
evenly. The rate of reading is the best of a copy and a sum of 2 GiB, in the same run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import time
from pathlib import Path
from typing import Any

import processes
import tables
from architecture_shapes import SHAPES

SIDES = ("innerq", "eager", "static", "compile")
GIB = 2**30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES), metavar="MODEL")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8192, help="of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="shrink the sizes of the models, as a smoke test")
    parser.add_argument("--fill", action="store_true", help="one request a process, to fill the compile caches on disk")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time, with --fill")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that a process may take")
    parser.add_argument("--json", "--out", type=Path, help="write the results to this file, after each process")
    parser.add_argument("--once", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.jobs > 1 and not args.fill:
        parser.error("--jobs is for --fill: processes that run at the same time cannot be timed")
    if args.new < 4:
        parser.error("--new has to be at least 4, to have steps to measure")
    return args


def in_a_process(args: argparse.Namespace, name: str, side: str) -> dict[str, Any]:
    """The figures of one side of a model."""
    began = time.perf_counter()
    found = processes.measured(__file__, [*sys.argv[1:], "--once", name, side], seconds=args.timeout)
    return {"model": name, "side": side, **found, "process_s": time.perf_counter() - began}


def comparison(results: list[dict[str, Any]], read_gb_s: float) -> list[dict[str, Any]]:
    """A row for each model: what innerq reaches against the other sides and against the limit."""
    rows = []
    for name in dict.fromkeys(result["model"] for result in results):
        sides = {result["side"]: result for result in results if result["model"] == name}
        speeds = {side: result["tokens_per_s"] for side, result in sides.items() if result.get("tokens_per_s")}
        row: dict[str, Any] = {"model": name, "tokens_per_s": speeds}
        row["failed"] = [side for side, result in sides.items() if "failed" in result]
        others = [speed for side, speed in speeds.items() if side != "innerq"]
        dense = [sides[side]["cache_bytes"] for side in ("eager", "compile", "static") if side in speeds]
        row["dense_bytes"] = dense[0] if dense else None
        if "innerq" in speeds:
            ours = sides["innerq"]
            row["ratio"] = speeds["innerq"] / max(others) if others else None
            row["cache_bytes"] = ours["cache_bytes"]
            row["limit_ms"] = (ours["weight_bytes"] + ours["cache_bytes"]) / read_gb_s / 1e6
            row["of_limit"] = row["limit_ms"] / ours["step_ms"]
        rows.append(row)
    return rows


def number(value: float | None, digits: int = 2) -> str:
    """A cell; a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def line_of(result: dict[str, Any]) -> list[str]:
    """What is printed as soon as a process has ended."""
    cells = [result["model"], result["side"]]
    if "failed" in result:
        return [*cells, "failed:", result["failed"]]
    cells += [f"first token {result['first_token_s']:.1f} s"]
    if "step_ms" in result:
        cells += [f"step {result['step_ms']:.2f} ms, {result['tokens_per_s']:.1f} tokens/s"]
    if "recorded" in result:
        cells += [f"{result['graphs']} graphs, {result['recorded']} calls recorded"]
        cells += [f"{result['rewritten']} of {result['attentions']} attentions rewritten", *result["not_rewritten"]]
    return cells


def show(args: argparse.Namespace, head: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """The tables of a run, and the failures."""
    columns = ("model", "side", "first token, s", "step, ms", "tokens/s", "peak, GiB", "weights, GiB", "cache, MiB")
    rows = []
    for result in results:
        cells = [result["model"], result["side"]]
        if "failed" in result:
            rows.append([*cells, result["failed"][:40]])
            continue
        gib = (result.get("peak_gib", result["first_peak_gib"]), result["weight_bytes"] / GIB)
        speed = (result.get("step_ms"), result.get("tokens_per_s"))
        cells += [number(value) for value in (result["first_token_s"], *speed, *gib)]
        rows.append([*cells, number(result["cache_bytes"] / 2**20)])
    title = f"{args.layers} layers, {args.batch} x {args.tokens} tokens, {'tiny, ' * args.tiny}bfloat16"
    tables.show(columns, rows, title=title, caption=head["device"], words=2)
    if not args.fill:
        columns = ("model", *(f"{side}, tokens/s" for side in args.sides), "innerq / best other", "of the limit")
        rows = []
        for row in head["comparison"]:
            speeds = row["tokens_per_s"]
            cells = ["failed" if side in row["failed"] else number(speeds.get(side), 1) for side in args.sides]
            cells += [number(row.get("ratio")), number(row.get("of_limit"), 2)]
            cells += [number(row.get(name), 0) for name in ("cache_bytes", "dense_bytes")]
            rows.append([row["model"], *cells])
        caption = f"{head['device']}, reads {head['read_gb_s']:,.0f} GB/s"
        tables.show((*columns, "cache, bytes", "dense, bytes"), rows, title=title, caption=caption)
    for result in results:
        if "failed" in result:
            tables.console.print(f"{result['model']} {result['side']}: {result['failed']}")


def main() -> None:
    args = arguments()
    if args.once:
        from architecture_once import measure, read_gb_s

        name, side = args.once
        found = {"read_gb_s": read_gb_s(args.device, args.tiny)} if side == "-" else measure(args, name, side)
        print(json.dumps(found))
        return
    rate = {} if args.fill else processes.measured(__file__, [*sys.argv[1:], "--once", "-", "-"], seconds=args.timeout)
    if "failed" in rate:
        raise SystemExit(f"the rate of reading could not be measured: {rate['failed']}\n{rate['stderr']}")
    sizes = {name: getattr(args, name) for name in ("batch", "tokens", "new", "layers", "tiny", "fill")}
    head, results = {**processes.machine(args.device), "sizes": sizes, **rate}, []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        started = [pool.submit(in_a_process, args, name, side) for name in args.models for side in args.sides]
        for done in concurrent.futures.as_completed(started):
            results.append(result := done.result())
            tables.console.print(*line_of(result), f"({result['process_s']:.0f} s in all)", sep="  ", soft_wrap=True)
            if rate:
                head["comparison"] = comparison(results, rate["read_gb_s"])
            if args.json is not None:
                args.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")
    show(args, head, results)
    sys.exit(any("failed" in result for result in results))


if __name__ == "__main__":
    main()
