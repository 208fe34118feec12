"""Fidelity of the presets, the paper's formats and KIVI-like grouping on a real model.

    python benchmarks/fidelity.py                                       # the demo model on this CPU: slow
    python benchmarks/fidelity.py --data DIR --device cuda --json fidelity.json
    python benchmarks/fidelity.py --from-json smollm2.json gemma3.json --page docs/fidelity.md --plot fidelity.png

The second half of each document is decoded through the quantized cache, teacher-forced, and compared with full
precision. The decoding is emulated in one pass (docs/fidelity.md); ``--step-by-step`` checks that.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import tables
import torch
from emulation import page
from emulation.bench import Bench, add_options
from emulation.decode import Format, compare, install, queries_of
from emulation.known import known_formats
from emulation.product import ProductSide
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from innerq_compile import InnerQTensor

#: By preset, the published format that it is compared with.
BASELINES = {
    "preset base": "paper innerq_base 3/3",
    "preset small": "paper innerq_small 3/2",
    "preset hybrid": "paper innerq_hybrid 3/2",
    "preset int4": "paper 4/4 symmetric",
    "preset tiny": "paper innerq_small 3/2",
}
#: Labels of the series of the plot, by the first word of a format's name.
SERIES = {"preset": "innerq-compile", "paper": "paper, repaired", "kivi-like": "KIVI-like grouping"}
#: Formats that would lie on others in the plot.
NOT_PLOTTED = ("preset hybrid", "preset paper_base", "preset paper_small", "preset paper_hybrid")
QUESTIONS_FILE = "questions.pt"


def progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=tables.console)


def bits(row: dict) -> float:
    return (row["key_bits"] + row["value_bits"]) / 2


def show_figures(bench: Bench, rows: list[dict]) -> None:
    head = bench.head()
    full = math.exp(sum(bench.nll_full) / len(bench.nll_full))
    tables.show(
        ("format", "bits K/V", "KL", "KL, held out", "top-1 %", "perplexity"),
        [
            (
                row["name"],
                f"{row['key_bits']:.2f}/{row['value_bits']:.2f}",
                f"{row['kl']:.5f}",
                "-" if row["kl_held_out"] is None else f"{row['kl_held_out']:.5f}",
                f"{100 * row['top1']:.1f}",
                f"{math.exp(row['nll']):.3f}",
            )
            for row in rows
        ],
        title=f"{head['model']}: {len(bench.names)} documents, {head['positions']:,} positions, {head['device']}",
        caption=f"perplexity in full precision {full:.3f}",
    )


def show_compared(entries: list[dict]) -> None:
    tables.show(
        ("preset", "baseline", "best KIVI-like of no more bits", "bits", "KL / baseline's", "KL / KIVI-like's"),
        [
            (
                e["name"].removeprefix("preset "),
                e.get("baseline", "-"),
                f"{e['peer']} ({e['peer_bits']:.2f})" if "peer" in e else "-",
                f"{e['bits']:.2f}",
                f"{e['ratio']:.2f}" if "ratio" in e else "-",
                f"{e['peer_ratio']:.2f}" if "peer" in e else "-",
            )
            for e in entries
        ],
        words=3,
    )


def compared(rows: list[dict]) -> list[dict]:
    """KL of each measured preset relative to its baseline, and to the best KIVI-like format of no more bits."""
    by_name = {row["name"]: row for row in rows}
    found = []
    for name, baseline in BASELINES.items():
        if name not in by_name:
            continue
        row = by_name[name]
        entry = {"name": name, "bits": bits(row)}
        if baseline in by_name:
            entry |= {"baseline": baseline, "ratio": row["kl"] / by_name[baseline]["kl"]}
        peers = [r for r in rows if r["name"].startswith("kivi-like") and bits(r) <= bits(row)]
        if peers:
            peer = min(peers, key=lambda r: r["kl"])
            entry |= {"peer": peer["name"], "peer_bits": bits(peer), "peer_ratio": row["kl"] / peer["kl"]}
        found.append(entry)
    return found


def plot(results: list[dict], file: Path) -> None:
    """Plot KL by effective bits, a panel for each model."""
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
            mine = [r for r in result["rows"] if r["name"].startswith(f"{first} ") and r["name"] not in NOT_PLOTTED]
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
    """Logits ``[1, count, vocab]`` of the first document, decoded one token at a time through the library's caches."""
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
def check_steps(bench: Bench, formats: list[Format], count: int) -> list[dict]:
    """Compare the emulation with the library's caches: mean KL of the first document's first ``count`` tokens."""
    chosen = [f for f in formats if isinstance(f.key, ProductSide)]
    if not chosen:
        raise SystemExit(
            "--step-by-step needs a preset among the formats: only the library's caches decode step by step"
        )
    emulation = bench.sets[0]
    decoded = emulation.tokens[:1, emulation.prompt :][:, :count]
    count = decoded.shape[1]
    found = []
    with progress() as bar:
        task = bar.add_task("step by step", total=len(chosen) * count)
        for fmt in chosen:
            both = (stepped(bench, fmt, count, lambda: bar.advance(task)), emulation.logits(fmt)[:1, :count])
            kl, emulated = (compare(logits, emulation.reference[:1, :count], decoded)["kl"][0] for logits in both)
            found.append({"name": fmt.name, "stepped": kl, "emulated": emulated, "difference": abs(kl - emulated)})
    tables.show(
        ("preset", "KL stepped", "KL emulated", "difference"),
        [(f["name"], f"{f['stepped']:.6f}", f"{f['emulated']:.6f}", f"{f['difference']:.1e}") for f in found],
        title=f"one token at a time, {bench.names[0]!r}, {count} steps",
    )
    largest = max(f["difference"] for f in found)
    tables.console.print(f"largest difference of mean KL from the emulation: {largest:.2e}")
    return found


def ask(bench: Bench, args: argparse.Namespace, formats: list[Format]) -> dict[str, dict]:
    """Right answers by format (``full precision`` among them) and task."""
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
    with progress() as bar:
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
    tables.show(
        ("format", *tasks),
        [(name, *(f"{r['right']} of {r['asked']} ({r['kept']})" for r in found[name].values())) for name in names],
        title="right answers (of those right in full precision, kept)",
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="only formats whose name contains one of these"
    )
    parser.add_argument(
        "--from-json",
        type=Path,
        nargs="+",
        help="measure nothing: print results that --json wrote, one file for each model, as Markdown",
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
    if args.from_json:
        results = [json.loads(file.read_text()) for file in args.from_json]
        for result in results:
            result["compared"] = compared(result["rows"])
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
    with progress() as bar:
        task = bar.add_task("formats", total=len(formats))
        for fmt in formats:
            bar.update(task, description=fmt.name)
            rows.append(bench.row(fmt))
            bar.advance(task)
    result = {**bench.head(), "rows": rows, "compared": compared(rows)}
    show_figures(bench, rows)
    if result["compared"]:
        show_compared(result["compared"])
    if args.json:  # what follows may take a long time
        args.json.write_text(json.dumps(result))
    if args.plot:
        plot([result], args.plot)
    if args.step_by_step:
        result["step_by_step"] = check_steps(bench, formats, args.step_by_step)
    if args.retrieval:
        result["retrieval"] = ask(bench, args, formats)
    if args.json:
        args.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
