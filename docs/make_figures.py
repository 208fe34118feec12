"""Fill the tables of pages that are made from data: from docs/figures.toml, benchmarks/results, and the package itself.

    python docs/make_figures.py            # rewrite the regions of all pages (docs/regions.py)
    python docs/make_figures.py --check    # exit with 1 where a page is out of date

A table is a function of this file with the decorator :func:`region`, whose name it goes by in the pages.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomllib
from regions import ROOT, filled, main, pages, table

#: By name, what fills a region.
REGIONS: dict[str, Callable[[], str]] = {}


def region(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function that gives the text of the region ``name``."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        REGIONS[name] = make
        return make

    return register


@functools.cache
def figures() -> dict[str, Any]:
    """docs/figures.toml."""
    return tomllib.loads((ROOT / "docs/figures.toml").read_text(encoding="utf-8"))


@functools.cache
def results(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """A file of benchmarks/results: its rows by batch x context and side, as ``("1x4096", "innerq")``."""
    text = (ROOT / "benchmarks/results" / f"{name}.json").read_text(encoding="utf-8")
    return {(row["row"], row["side"]): row for row in json.loads(text)["results"]}


def fidelity(model: str) -> tuple[str, dict[str, str]]:
    """Of a model's results in docs/fidelity.md, which fidelity.py writes: positions, and KL by format."""
    text = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
    section = text.partition(f"### {model}\n")[2].partition("\n##")[0]
    rows = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| "))
    positions = re.search(r"([\d,]+) decoded positions", section)
    assert positions is not None, f"docs/fidelity.md has no results of {model}"
    return positions[1], {cells[0]: cells[2] for cells in rows if len(cells) == 6 and "/" in cells[1]}


@region("results")
def _results() -> str:
    """The README's table: one row a claim."""
    step, demo, attention = results("generate-8b-h200-recorded"), figures()["demo"], figures()["kernels"]["attention"]
    positions, divergence = fidelity("SmolLM2-135M-Instruct")
    cpu = next(row for row in figures()["cpu"]["step"]["rows"] if (row["tokens"], row["dtype"]) == (8192, "float32"))
    shapes = ("1x32768", "4x32768")

    def both(side: str, field: str, unit: str) -> str:
        digits = 1 if field == "ms" else 2
        return " / ".join(f"{step[shape, side][field]:.{digits}f}" for shape in shapes) + f" {unit}"

    rows = [
        [
            "Decode step, 8B Llama shape, H200, 1 / 4 sequences of 32,768 tokens",
            both("static", "ms", "ms"),
            both("innerq", "ms", "ms"),
        ],
        ["Memory of that cache", both("static", "cache_gib", "GiB"), both("innerq", "cache_gib", "GiB")],
        [
            f"Attention of one layer, {attention['device']}, {attention['shape']}",
            f"{attention['rows'][0]['dense_us']:.0f} us (cuDNN)",
            f"{attention['rows'][0]['us']:.0f} us",
        ],
        [
            "Decode step, SmolLM2-135M in float32, one CPU thread, 8,192 tokens",
            f"{cpu['inductor_ms']:.0f} ms",
            f"{cpu['innerq_ms']:.0f} ms",
        ],
        [
            f"Same next token, SmolLM2-135M behind a prompt of {demo['tokens'] - 1:,} tokens (`make demo`)",
            "",
            f"{demo['same_token']} of {demo['new_tokens']}",
        ],
        [
            f"Mean KL divergence from full precision, SmolLM2-135M, {positions} positions",
            "",
            f"{divergence['preset base']} ({divergence['paper innerq_base 3/3']} for the paper's format)",
        ],
    ]
    return table(["measurement", "dense cache", "preset `base`"], rows)


@functools.cache
def cache_shares(preset: str, tokens: int) -> tuple[str, str]:
    """What a preset's keys and values take of a float16 cache at head_dim 128: needed, and allocated after prefill."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from cache_bytes import shares

    needed, allocated = shares(preset, tokens, 128, torch.float16)
    return f"{needed:.3f}", f"{allocated:.3f}"


@region("presets")
def _presets() -> str:
    """Every preset, with the share of a 16-bit cache that it takes."""
    from innerq_compile import PRESETS, InnerQConfig

    rows = []
    for name in PRESETS:
        config = InnerQConfig.preset(name)
        exact = config.key_mode == config.value_mode == "none"
        bits = "not quantized" if exact else f"{config.key_bits} / {config.value_bits}"
        modes = "" if exact else f"{config.key_mode} / {config.value_mode}"
        rows.append([f"`{name}`", bits, modes, *(cache_shares(name, tokens)[0] for tokens in (4096, 32768))])
    columns = ["preset", "bits, keys / values", "modes", "size at 4,096 tokens", "size at 32,768 tokens"]
    return table(columns, rows)


@region("decode-steps")
def _decode_steps() -> str:
    """Whole decode steps on a GPU and on a CPU, of docs/performance.md."""
    step, rows = results("generate-8b-h200-recorded"), []
    for index, row in enumerate(("1x4096", "1x32768", "4x32768", "1x122880")):
        batch, context = map(int, row.split("x"))
        dense, ours = step[row, "static"], step[row, "innerq"]
        rows.append(
            [
                "" if index else "H200, 8B Llama shape, float16",
                f"{batch} x {context:,}",
                *_speedup(dense["ms"], ours["ms"], "ms", 2),
                *(f"{side['cache_gib']:.2f} GiB" for side in (dense, ours)),
            ]
        )
    cpu, last = figures()["cpu"]["step"], ""
    for row in sorted(cpu["rows"], key=lambda row: (row["dtype"] != "float32", row["tokens"])):
        machine = f"CPU, {cpu['model']}, {row['dtype']}"
        rows.append(
            [
                "" if machine == last else machine,
                f"1 x {row['tokens']:,}",
                *_speedup(row["inductor_ms"], row["innerq_ms"], "ms", 1),
                *(f"{row[side]:.1f} MB" for side in ("inductor_mb", "innerq_mb")),
            ]
        )
        last = machine
    columns = ["machine and model", "batch x context", "full precision", "innerq, `base`", "speedup"]
    return table([*columns, "cache, full precision", "cache, innerq"], rows)


@region("first-token")
def _first_token() -> str:
    """From the first request on, of docs/performance.md: the results of benchmarks/first_token.py."""
    rows = []
    for file in sorted((ROOT / "benchmarks/results").glob("first-token-*.json"), reverse=True):
        found = json.loads(file.read_text(encoding="utf-8"))
        sizes, machine = found["sizes"], found["device"].removeprefix("NVIDIA ").partition(",")[0]
        model = f"{machine}, {sizes['layers']} layers, hidden size {sizes['hidden']}, {sizes['dtype']}"
        sides: dict[str, dict[str, Any]] = {}
        for result in found["results"]:
            sides.setdefault(result["side"], {})[result["caches"]] = result
        for index, (side, runs) in enumerate(sides.items()):
            last = [*runs.values()][-1]
            cells = [
                " / ".join("-" if run[name] is None else f"{run[name]:.1f}" for run in runs.values())
                for name in ("first_token_s", "fast_steps_s", "first_cpu_s", "second_prompt_s")
            ]
            speed = [f"{last['prompt_ms']:,.0f} ms", f"{last['step_ms']:.1f} ms"]
            rows.append(["" if index else model, f"`{side}`", *cells, *speed, f"{last['peak_gib']:.1f} GiB"])
    columns = ["machine and model", "side", "first token, s", "fast steps, s", "CPU time, s", "another length, s"]
    return table([*columns, "prompt", "step", "peak memory"], rows)


@region("kernels")
def _kernels() -> str:
    """Single kernels, of docs/kernels.md."""
    kernels, rows = figures()["kernels"], []
    for index, row in enumerate(kernels["attention"]["rows"]):
        dense, ours, faster = _speedup(row["dense_us"], row["us"], "us", 1)
        rows.append(["" if index else "`decode_attention`", row["case"], ours, f"{row['share']}%", dense, faster])
    for row in kernels["encoding"]["rows"]:
        rows.append([row["kernel"], row["case"], row["result"], row["bandwidth"], "", ""])
    for index, row in enumerate(kernels["linear"]["rows"]):
        dense, ours, faster = _speedup(row["dense_us"], row["us"], "us", 1)
        share = f"{100 * row['rate'] / kernels['linear']['peak']:.0f}%"
        rows.append(["" if index else "`row_linear`", row["case"], ours, share, dense, faster])
    return table(["kernel", "case", "result", "bandwidth", "baseline", "speedup"], rows)


def _speedup(dense: float, ours: float, unit: str, digits: int) -> list[str]:
    """A time in full precision, ours, and how many times as fast that is."""
    return [f"{dense:.{digits}f} {unit}", f"{ours:.{digits}f} {unit}", f"{dense / ours:.1f}"]


@region("cache-bytes")
def _cache_bytes() -> str:
    """What `base` takes of a float16 cache, of docs/formats.md."""
    rows = [[f"{tokens:,}", *cache_shares("base", tokens)] for tokens in (4096, 8192, 32768)]
    return table(["tokens", "needed", "allocated after prefill"], rows)


@region("passes")
def _passes() -> str:
    """The passes in order, of docs/how-it-works.md."""
    from innerq_compile.passes import PIPELINE

    rows = []
    for graph_pass in PIPELINE.passes:
        left_out = ", ".join(f"`{name}`" for name in PIPELINE.left_out([graph_pass.name]) if name != graph_pass.name)
        without = "required" if graph_pass.required else f"also left out: {left_out}" if left_out else ""
        rows.append([f"`{graph_pass.name}`", graph_pass.summary, without])
    return table(["pass", "what it does", "without it"], rows)


def wanted() -> dict[Path, str]:
    """The text that each page should have."""
    return {path: filled(path.read_text(encoding="utf-8"), REGIONS) for path in pages()}


if __name__ == "__main__":
    main(__doc__.partition("\n")[0], wanted)
