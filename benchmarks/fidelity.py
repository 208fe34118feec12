"""Fidelity of the presets on a real model, against the paper's formats and KIVI-like grouping.

    python benchmarks/fidelity.py                                       # the demo model on this CPU: slow
    python benchmarks/fidelity.py --data DIR --device cuda --json fidelity.json
    python benchmarks/fidelity.py --from-json smollm2.json gemma3.json --page docs/fidelity.md --plot fidelity.png

The second half of each document is decoded through the quantized cache, teacher-forced, and compared with full
precision. The decoding is emulated in one pass, exactly (docs/fidelity.md); ``--step-by-step`` checks that.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from emulation import page
from emulation.bench import Bench, add_options
from emulation.decode import Format, compare, install, queries_of
from emulation.known import known_formats
from emulation.product import ProductSide
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from innerq_compile import InnerQTensor

#: Preset -> (what it is held against, KL relative to that: target, at least; effective bits, at most).
TARGETS = {
    "preset base": ("paper innerq_base 3/3", 0.30, 0.42, 3.5),
    "preset small": ("paper innerq_small 3/2", 0.22, 0.30, 3.0),
    "preset hybrid": ("preset small", 1.0, 1.0, 3.25),
    "preset int4": ("paper 4/4 symmetric", 0.35, 0.60, 4.5),
    "preset tiny": ("paper innerq_small 3/2", 0.60, 0.85, 2.5),
}
#: First word of a format's name -> label of its series.
SERIES = {"preset": "innerq-compile", "paper": "paper, repaired", "kivi-like": "KIVI-like grouping"}
QUESTIONS_FILE = "questions.pt"


def progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def bits(row: dict) -> float:
    return (row["key_bits"] + row["value_bits"]) / 2


def figures(bench: Bench, rows: list[dict]) -> Table:
    head = bench.head()
    full = math.exp(sum(bench.nll_full) / len(bench.nll_full))
    title = f"{head['model']}: {len(bench.names)} documents, {head['positions']:,} decoded positions, {head['device']}"
    table = Table("format", title=title, caption=f"perplexity in full precision {full:.3f}")
    for name in ("bits K/V", "KL", "KL, held out", "top-1 %", "perplexity"):
        table.add_column(name, justify="right")
    for row in rows:
        held_out = "-" if row["kl_held_out"] is None else f"{row['kl_held_out']:.5f}"
        table.add_row(
            row["name"],
            f"{row['key_bits']:.2f}/{row['value_bits']:.2f}",
            f"{row['kl']:.5f}",
            held_out,
            f"{100 * row['top1']:.1f}",
            f"{math.exp(row['nll']):.3f}",
        )
    return table


def verdict(ratio: float, target: float, least: float) -> str:
    if ratio <= target:
        return "target met"
    return "at least met" if ratio <= least else "missed"


def compared(rows: list[dict]) -> list[dict]:
    """Each measured preset against what it is held against, and against the best peer of no more bits."""
    by_name = {row["name"]: row for row in rows}
    found = []
    for row in rows:
        if not row["name"].startswith("preset "):
            continue
        against, target, least, most = TARGETS.get(row["name"], (None, None, None, None))
        entry = {"name": row["name"], "bits": bits(row), "bits_at_most": most}
        if against in by_name:
            ratio = row["kl"] / by_name[against]["kl"]
            entry |= {"against": against, "ratio": ratio, "target": target, "at_least": least}
            entry["verdict"] = verdict(ratio, target, least)
        peers = [r for r in rows if r["name"].startswith("kivi-like") and bits(r) <= bits(row)]
        if peers:
            peer = min(peers, key=lambda r: r["kl"])
            entry |= {"peer": peer["name"], "peer_bits": bits(peer), "peer_ratio": row["kl"] / peer["kl"]}
        found.append(entry)
    return found


def comparison(entries: list[dict]) -> Table:
    table = Table("preset", title="KL of the presets, relative")
    for name in (
        "bits/at most",
        "held against",
        "ratio",
        "target/at least",
        "",
        "best peer of no more bits",
        "ratio",
    ):
        table.add_column(name, justify="right" if name in ("ratio", "bits/at most") else "left")
    for e in entries:
        table.add_row(
            e["name"].removeprefix("preset "),
            f"{e['bits']:.2f}/{e['bits_at_most'] or '-'}",
            e.get("against", "-"),
            f"{e['ratio']:.2f}" if "ratio" in e else "-",
            f"{e['target']:.2f}/{e['at_least']:.2f}" if "ratio" in e else "-",
            e.get("verdict", ""),
            f"{e['peer']} ({e['peer_bits']:.2f})" if "peer" in e else "-",
            f"{e['peer_ratio']:.2f}" if "peer" in e else "-",
        )
    return table


def plot(results: list[dict], file: Path) -> None:
    """KL against effective bits, a panel a model."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib. Run: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (8 * len(results), 5)
    figure, panels = pyplot.subplots(1, len(results), figsize=size, layout="constrained", squeeze=False)
    for axes, result in zip(panels[0], results, strict=True):
        for (first, label), mark in zip(SERIES.items(), "os^", strict=True):
            mine = [r for r in result["rows"] if r["name"].startswith(f"{first} ")]
            if not mine:
                continue
            axes.scatter([bits(r) for r in mine], [r["kl"] for r in mine], marker=mark, label=label)
            for r in mine:
                text = r["name"].removeprefix(f"{first} ")
                axes.annotate(text, (bits(r), r["kl"]), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set_yscale("log")
        axes.set_title(result["model"])
        axes.set_xlabel("effective bits of an element, mean of keys and values, windows apart")
        axes.set_ylabel("mean KL(full precision || quantized), nats a token")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=150)


@torch.no_grad()
def stepped(bench: Bench, fmt: Format, count: int, tick) -> torch.Tensor:
    """Logits ``[1, count, vocab]`` of the first document, decoded one token at a time through caches of the product."""
    from transformers import DynamicCache

    emulation, model = bench.sets[0], bench.model
    tokens, prompt = emulation.tokens[:1], emulation.prompt
    queries = queries_of(model, tokens[:, :prompt])
    model.set_attn_implementation("eager")
    try:
        cache = DynamicCache(config=model.config)
        model(tokens[:, :prompt], past_key_values=cache, use_cache=True, logits_to_keep=1)
        for layer, query in zip(cache.layers, queries, strict=True):
            if not layer.is_sliding:  # those stay in full precision, as in the emulation
                layer.keys = InnerQTensor.from_dense(layer.keys, fmt.key.config, role="key", queries=query)
                layer.values = InnerQTensor.from_dense(layer.values, fmt.value.config, role="value")
        logits = []
        for i in range(prompt, prompt + count):
            logits.append(model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True).logits[:, -1].float())
            tick()
        for index, layer in enumerate(cache.layers):
            if not layer.is_sliding and not isinstance(layer.keys, InnerQTensor):
                raise SystemExit(f"layer {index} has lost its quantized cache: these steps say nothing")
    finally:
        install(model)
    return torch.stack(logits, 1)


@torch.no_grad()
def check_steps(bench: Bench, formats: list[Format], count: int, console: Console) -> list[dict]:
    """The emulation against the product, by preset: mean KL of the first document's first ``count`` decoded tokens."""
    chosen = [f for f in formats if isinstance(f.key, ProductSide)]
    if not chosen:
        raise SystemExit(
            "--step-by-step needs a preset among the formats: only the product's caches decode step by step"
        )
    emulation = bench.sets[0]
    decoded = emulation.tokens[:1, emulation.prompt :][:, :count]
    count = decoded.shape[1]
    found = []
    with progress(console) as bar:
        task = bar.add_task("step by step", total=len(chosen) * count)
        for fmt in chosen:
            both = (stepped(bench, fmt, count, lambda: bar.advance(task)), emulation.logits(fmt)[:1, :count])
            kl, emulated = (compare(logits, emulation.reference[:1, :count], decoded)["kl"][0] for logits in both)
            found.append({"name": fmt.name, "stepped": kl, "emulated": emulated, "difference": abs(kl - emulated)})
    table = Table("preset", title=f"one token at a time, {bench.names[0]!r}, {count} steps")
    for name in ("KL stepped", "KL emulated", "difference"):
        table.add_column(name, justify="right")
    for f in found:
        table.add_row(f["name"], f"{f['stepped']:.6f}", f"{f['emulated']:.6f}", f"{f['difference']:.1e}")
    console.print(table)
    console.print(f"largest difference of mean KL from the emulation: {max(f['difference'] for f in found):.2e}")
    return found


def ask(bench: Bench, args: argparse.Namespace, formats: list[Format], console: Console) -> dict[str, dict]:
    """Right answers of each format by task; ``full precision`` among the formats."""
    from emulation.retrieval import Questions, answers, questions

    if args.data:
        file = args.data / QUESTIONS_FILE
        if not file.exists():
            raise SystemExit(f"{file} is missing: pack again with pack_model.py, or leave --data or --retrieval out")
        packed = torch.load(file, weights_only=True)
        tasks = {task: Questions(**fields) for task, fields in packed.items()}
    else:
        from smollm2 import prose

        tasks = questions(bench.tokenizer, prose(), args.retrieval)
    names = ["full precision", *(f.name for f in formats)]
    found: dict[str, dict] = {name: {} for name in names}
    with progress(console) as bar:
        for task, asked in tasks.items():
            asked = asked.first_rows(args.retrieval)
            total = len(names) * math.ceil(len(asked.tokens) / args.batch)
            this = bar.add_task(task, total=total)
            right = answers(
                bench.model, asked, [None, *formats], args.batch, args.device, lambda t=this: bar.advance(t)
            )
            for name, which in zip(names, right, strict=True):
                kept = int((which & right[0]).sum())
                found[name][task] = {"right": int(which.sum()), "kept": kept, "asked": len(which)}
    table = Table("format", title="right answers (of those right in full precision, kept)")
    for task in tasks:
        table.add_column(task, justify="right")
    for name in names:
        table.add_row(name, *(f"{r['right']} of {r['asked']} ({r['kept']})" for r in found[name].values()))
    console.print(table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="only formats whose name holds one of these"
    )
    parser.add_argument(
        "--from-json",
        type=Path,
        nargs="+",
        help="measure nothing: print what --json wrote, a file a model, as Markdown",
    )
    parser.add_argument("--page", type=Path, help="with --from-json: the page whose results are replaced")
    parser.add_argument("--plot", type=Path, help="file for KL against effective bits (needs matplotlib)")
    parser.add_argument(
        "--step-by-step",
        type=int,
        nargs="?",
        const=128,
        default=0,
        metavar="STEPS",
        help="check the emulation of each preset on the first document, that many tokens one at a time (default 128)",
    )
    parser.add_argument("--retrieval", type=int, default=0, metavar="N", help="N questions of each retrieval task")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    if args.from_json:
        results = [json.loads(file.read_text()) for file in args.from_json]
        for result in results:
            result["compared"] = compared(result["rows"])  # targets may have changed since
            print(page.section(result))
        if args.page:
            page.write(args.page, results)
        if args.plot:
            plot(results, args.plot)
        return
    if args.page:
        parser.error("--page is written from what --json wrote: give --from-json FILE ... too")
    formats = [f for f in known_formats() if not args.only or any(text in f.name for text in args.only)]
    if not formats:
        raise SystemExit(f"--only {' '.join(args.only)} leaves nothing: {', '.join(f.name for f in known_formats())}")
    bench = Bench.load(args)
    rows = []
    with progress(console) as bar:
        task = bar.add_task("formats", total=len(formats))
        for fmt in formats:
            bar.update(task, description=fmt.name)
            rows.append(bench.row(fmt))
            bar.advance(task)
    result = {**bench.head(), "rows": rows, "compared": compared(rows)}
    console.print(figures(bench, rows))
    if result["compared"]:
        console.print(comparison(result["compared"]))
    if args.json:  # what follows may take long
        args.json.write_text(json.dumps(result))
    if args.plot:
        plot([result], args.plot)
    if args.step_by_step:
        result["step_by_step"] = check_steps(bench, formats, args.step_by_step, console)
    if args.retrieval:
        result["retrieval"] = ask(bench, args, formats, console)
    if args.json:
        args.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
