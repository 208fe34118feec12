"""Seconds until a model answers and until its steps are fast, with empty caches on disk and with full ones.

    python benchmarks/first_token.py                                          # a small model on this CPU
    python benchmarks/first_token.py --device cuda --json out.json            # the 8B shape with random weights
    python benchmarks/first_token.py --device cuda --sides innerq --versus regions=False      # an option, side by side

Sides: ``innerq`` is ``innerq(model)``; ``compile`` is ``model.compile()``; ``static`` is ``generate`` with
``cache_implementation="static"``, which compiles its steps on a GPU and nothing on a CPU; ``eager`` compiles nothing.
Each is measured in two processes: *cold* starts with an empty folder for the caches of Inductor and Triton, *warm* with
the one that the cold process left. A process makes the model, then the clock starts, and it answers

    a first prompt              seconds until the first token, and until steps are fast: until the first of three steps
                                in a row that take at most 1.2 times the median of the last half
    one of another length       seconds until the first token
    the first length, again     milliseconds of the prompt and of a step, tokens a second, peak memory

Times are those at which ``generate`` hands out tokens. Imports of torch and transformers are not part of them. On a
busy machine compare the CPU time of the first request, compilers that it starts included, with ``--threads 1``.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import processes
import tables

SIDES = ("innerq", "compile", "static", "eager")
#: Sizes by device: the 8B shape, and a model of as many small layers as fit a CPU.
SHAPES = {
    "cuda": {"layers": 32, "hidden": 4096, "head_dim": 128, "vocabulary": 128256, "prompt": 4096, "dtype": "bfloat16"},
    "cpu": {"layers": 24, "hidden": 512, "head_dim": 64, "vocabulary": 8192, "prompt": 300, "dtype": "float32"},
}
#: Columns of the table by field: title and digits.
COLUMNS = {
    "first_token_s": ("first token, s", 1),
    "fast_steps_s": ("fast steps, s", 1),
    "first_cpu_s": ("CPU time, s", 1),
    "second_prompt_s": ("another length, s", 1),
    "prompt_ms": ("prompt, ms", 1),
    "step_ms": ("step, ms", 2),
    "tokens_per_s": ("tokens/s", 1),
    "first_peak_gib": ("first peak, GiB", 2),
    "peak_gib": ("later peak, GiB", 2),
    "graphs": ("graphs", 0),
    "graphs_from_cache": ("from the cache", 0),
}


def options_of(texts: list[str]) -> dict[str, Any]:
    """``["name=value", ...]`` as a dict; a value that is no Python literal is a string."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SystemExit(f"{text}: write it as NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def runs_of(args: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """What is measured: title, side and options of innerq; with ``--versus`` innerq a second time."""
    own = options_of(args.option)
    runs = []
    for side in args.sides:
        options = own if side == "innerq" else {}
        runs.append((" ".join([side, *args.option]) if options else side, side, options))
        if side == "innerq" and args.versus:
            runs.append((" ".join([side, *args.option, *args.versus]), side, own | options_of(args.versus)))
    return runs


def in_a_process(side: str, options: dict[str, Any], folder: str) -> dict[str, Any]:
    """The figures of a process of its own, whose caches on disk are in ``folder``."""
    environment = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": os.path.join(folder, "triton")}
    return processes.measured(__file__, [*sys.argv[1:], "--once", side, json.dumps(options)], environment)


def row_of(result: dict[str, Any]) -> list[str]:
    """The cells of a result."""
    cells = [result["side"], result["caches"]]
    if "failed" in result:
        return [*cells, result["failed"][:60]]
    return cells + [
        "-" if result[name] is None else f"{result[name]:,.{digits}f}" for name, (_, digits) in COLUMNS.items()
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=list(SHAPES))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--caches", nargs="+", default=["cold", "warm"], choices=["cold", "warm"], help="of the disk")
    for name in ("layers", "hidden", "head_dim", "vocabulary", "prompt"):
        sizes = " / ".join(f"{shape[name]} on {device}" for device, shape in SHAPES.items())
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, help=f"default: {sizes}", default=argparse.SUPPRESS
        )
    parser.add_argument("--dtype", default=argparse.SUPPRESS, help="default: bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--second", type=int, help="length of the second prompt (default: 5/4 of the first)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="that each answer has")
    parser.add_argument("--repeats", type=int, default=3, help="answers that prompt, step and tokens/s are medians of")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU")
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME=VALUE", help="options of innerq")
    parser.add_argument("--versus", nargs="+", default=[], metavar="NAME=VALUE", help="also measure innerq with these")
    parser.add_argument("--json", type=Path, help="write the results to this file, after each process")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in SHAPES[args.device].items():
        setattr(args, name, getattr(args, name, value))
    args.second = args.second or args.prompt * 5 // 4
    return args


def main() -> None:
    args = arguments()
    if args.once:
        from requests_from_start import measure

        print(json.dumps(measure(args, args.once[0], json.loads(args.once[1]))))
        return
    # So that no process pays for reading Python's files from the disk for the first time.
    subprocess.run([sys.executable, "-c", "import transformers, torch._inductor.compile_fx"], check=True)
    sizes = {name: getattr(args, name) for name in (*SHAPES["cpu"], "second", "batch", "tokens", "threads")}
    head, results = {**processes.machine(args.device), "sizes": sizes}, []
    for title, side, options in runs_of(args):
        with tempfile.TemporaryDirectory() as folder:
            for caches in ("cold", "warm") if side != "eager" else ("",):
                if caches == "warm" and "warm" not in args.caches:
                    continue
                began = time.perf_counter()
                result = {"side": title, "caches": caches, **in_a_process(side, options, folder)}
                result["process_s"] = time.perf_counter() - began
                results.append(result)
                tables.console.print(*row_of(result), f"({result['process_s']:.0f} s in all)")
                if args.json is not None:
                    args.json.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")
    columns = ("side", "caches", *(title for title, _ in COLUMNS.values()))
    title = f"{args.layers} layers, hidden size {args.hidden}, {args.dtype}, {args.batch} x {args.prompt} tokens"
    tables.show(columns, map(row_of, results), title=title, caption=head["device"], words=2)
    for result in results:
        if "failed" in result:
            tables.console.print(f"{result['side']} {result['caches']}:\n{result['stderr']}")
    sys.exit(any("failed" in result for result in results))


if __name__ == "__main__":
    main()
