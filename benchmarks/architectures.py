"""Tokens a second of ``generate()``, by architecture: innerq against what a user had before.

    python benchmarks/architectures.py --jobs 16 --gpus 2 --json out.json     # all models and sides, on two GPUs
    python benchmarks/architectures.py --models gemma3 gpt-oss --sides innerq static --tokens 32768 --layers 12
    python benchmarks/architectures.py --only phi3:innerq phi3:eager llama:compile --jobs 3
    python benchmarks/architectures.py --tiny --device cpu --models llama --tokens 100 200        # a smoke test

Models have the sizes of published ones, random weights in bfloat16 and ``--layers`` layers, both kinds of them where
layers differ. Sides: ``innerq`` is ``innerq(model)``; ``eager`` compiles nothing; ``static`` is ``generate`` with
``cache_implementation="static"``, which compiles its steps on a GPU; ``compile`` is ``model.compile()``.

Each side of a model is a process of its own, which makes the model, compiles by a short request of each size (a size is
one of ``--batch`` and one of ``--tokens``), and then answers two requests of each, one of a side that compiles nothing.
``--jobs`` processes compile at the same time, and answer one after the other on each GPU; while the last request of a
size is timed, all others stand still (``disturbed``: not until its end). What fails is a row that says why. A process
that has run out of memory beside others runs again alone.

Reported are the seconds from the call of ``innerq`` (or of another side) to the first token, with the compile caches as
the process finds them on disk, with the other processes beside it, and with the time in which it stood still for them;
the median step of the last half of the last request of a size, by the times at which ``generate`` hands out tokens,
which it has brought to the CPU then; and the bytes that the cache holds at the end, room that is not used yet included.

*Of the limit* is how much of the step it would take to only read weights and cache once: the weights of a step are all
parameters but embeddings that are looked up in, and of experts those that the batch's tokens reach if they are routed
evenly. The rate of reading is the best of a copy and a sum of 2 GiB, in the same run. *Dense share* is what part of
these bytes the cache would be in full precision.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import time
from collections.abc import Iterator
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
    parser.add_argument("--only", nargs="+", metavar="MODEL:SIDE", help="these sides of models, instead of all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="sequences")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768], help="of a prompt")
    parser.add_argument(
        "--chunk", type=int, help="give prompts to the model in chunks of so many tokens, not of those of the shape"
    )
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="shrink the sizes of the models, as a smoke test")
    parser.add_argument("--fill", action="store_true", help="only compile, to fill the caches on disk")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile at the same time")
    parser.add_argument("--gpus", type=int, default=1, help="on which processes are spread")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that a process may take")
    parser.add_argument("--within", type=float, default=86400, help="seconds after which the run ends with what it has")
    parser.add_argument("--json", "--out", type=Path, help="write the results to this file, after each process")
    parser.add_argument("--once", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        args.only = [tuple(each.split(":")) for each in args.only]
        if not {*args.only} <= {(name, side) for name in SHAPES for side in SIDES}:
            parser.error("--only takes pairs of a model and a side, such as llama:innerq")
        args.models = list(dict.fromkeys(name for name, _ in args.only))
    if args.new < 4:
        parser.error("--new has to be at least 4, to have steps to measure")
    return args


Result = dict[str, Any]


def in_a_process(
    args: argparse.Namespace, name: str, side: str, gpu: int, turns: processes.Turns, end: float
) -> Result:
    """The figures of one side of a model, in a process that sees one GPU and has until ``end``."""
    began = time.perf_counter()
    found = processes.measured(
        __file__,
        [*sys.argv[1:], "--once", name, side],
        {"CUDA_VISIBLE_DEVICES": str(gpu)} if args.gpus > 1 else None,
        seconds=min(args.timeout, max(0.0, end - began)),
        turns=turns,
        device=gpu,
    )
    return {"model": name, "side": side, **found, "process_s": time.perf_counter() - began}


def ran_out_of_memory(result: Result) -> bool:
    failures = [result, *result.get("first_requests", ()), *result.get("rows", ())]
    return any("OutOfMemory" in each.get("failed", "") for each in failures)


def measured_rows(result: Result) -> int:
    """How many sizes of a result have figures."""
    return sum("failed" not in row for row in result.get("rows", ()))


def results_of(args: argparse.Namespace) -> Iterator[Result]:
    """The figures of every side of every model, as they come."""
    wanted = args.only or [(name, side) for name in args.models for side in args.sides]
    gpus = {name: index % args.gpus for index, name in enumerate(args.models)}
    turns, end = processes.Turns(), time.perf_counter() + args.within
    beside_others: list[Result] = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        started = [pool.submit(in_a_process, args, name, side, gpus[name], turns, end) for name, side in wanted]
        for done in concurrent.futures.as_completed(started):
            result = done.result()
            if args.jobs > 1 and ran_out_of_memory(result):
                beside_others.append(result)
            else:
                yield result
    for first in beside_others:
        name, side = first["model"], first["side"]
        alone = in_a_process(args, name, side, gpus[name], turns, end) if time.perf_counter() < end else {}
        yield max(first, alone, key=measured_rows)  # the first of two alike


def comparison(results: list[Result], read_gb_s: float) -> list[Result]:
    """A row for each size of a model: what innerq reaches against the other sides and against the limit."""
    found: dict[tuple[str, int, int], dict[str, Result]] = {}
    for result in results:
        for row in result.get("rows", ()):
            found.setdefault((result["model"], row["batch"], row["tokens"]), {})[result["side"]] = row
    rows = []
    for (name, batch, tokens), sides in found.items():
        speeds = {side: row["tokens_per_s"] for side, row in sides.items() if "failed" not in row}
        row: Result = {"model": name, "batch": batch, "tokens": tokens, "tokens_per_s": speeds}
        others = [speed for side, speed in speeds.items() if side != "innerq"]
        dense = [sides[side] for side in ("eager", "compile", "static") if side in speeds]
        row["dense_bytes"] = dense[0]["cache_bytes"] if dense else None
        if dense:
            row["dense_share"] = row["dense_bytes"] / (row["dense_bytes"] + dense[0]["weight_bytes"])
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


def lines_of(result: Result) -> Iterator[str]:
    """What is printed as soon as a process has ended."""
    cells = [result["model"], result["side"], f"{result['process_s']:.0f} s in all"]
    if "failed" in result:
        cells += ["failed:", result["failed"]]
    if "first_token_s" in result:
        cells += [f"first token {result['first_token_s']:.1f} s"]
    if "compiled_s" in result:
        cells += [f"compiled after {result['compiled_s']:.0f} s, its turn after {result['turn_s']:.0f} s"]
    if "recorded" in result:
        cells += [f"{result['graphs']} graphs, {result['recorded']} calls recorded"]
        cells += [f"{result['rewritten']} of {result['attentions']} attentions rewritten", *result["not_rewritten"]]
    yield "  ".join(cells)
    for row in result.get("rows", ()):
        step = f"step {row['step_ms']:.2f} ms, {row['tokens_per_s']:.1f} tokens/s" if "step_ms" in row else ""
        yield f"    {row['batch']} x {row['tokens']}  {step or 'failed: ' + row['failed']}"


def show(args: argparse.Namespace, head: dict[str, Any], results: list[Result]) -> None:
    """The tables of a run."""
    title = f"{args.layers} layers, {'tiny, ' * args.tiny}bfloat16"
    columns = ("model", "side", "size", "prompt, ms", "step, ms", "tokens/s", "peak, GiB", "weights, GiB", "cache, MiB")
    rows = []
    for result in results:
        for row in result.get("rows", ()):
            cells = [result["model"], result["side"], f"{row['batch']} x {row['tokens']}"]
            if "failed" in row:
                rows.append([*cells, row["failed"][:40]])
                continue
            figures = [row["prompt_ms"], row["step_ms"], row["tokens_per_s"], row["peak_gib"]]
            figures += [row["weight_bytes"] / GIB, row["cache_bytes"] / 2**20]
            rows.append([*cells, *(number(value) for value in figures)])
    tables.show(columns, rows, title=title, caption=head["device"], words=3)
    columns = ("model", "size", *(f"{side}, tokens/s" for side in args.sides), "innerq / best other", "of the limit")
    rows = []
    for row in head["comparison"]:
        speeds = row["tokens_per_s"]
        cells = [number(speeds.get(side), 1) for side in args.sides]
        cells += [number(row.get(name)) for name in ("ratio", "of_limit", "dense_share")]
        cells += [number(row.get(name), 0) for name in ("cache_bytes", "dense_bytes")]
        rows.append([row["model"], f"{row['batch']} x {row['tokens']}", *cells])
    caption = f"{head['device']}, reads {head['read_gb_s']:,.0f} GB/s; a dash: failed or not measured"
    tables.show((*columns, "dense share", "cache, bytes", "dense, bytes"), rows, title=title, caption=caption)


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
    sizes = {name: getattr(args, name) for name in ("batch", "tokens", "new", "layers", "chunk", "tiny", "fill")}
    head, results = {**processes.machine(args.device), "sizes": sizes, **rate}, []
    for result in results_of(args):
        results.append(result)
        for line in lines_of(result):
            tables.console.print(line, soft_wrap=True, highlight=False)
        if rate:
            head["comparison"] = comparison(results, rate["read_gb_s"])
        if args.json is not None:
            args.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")
    if not args.fill:
        show(args, head, results)
    sys.exit(any("failed" in each for result in results for each in (result, *result.get("rows", ()))))


if __name__ == "__main__":
    main()
