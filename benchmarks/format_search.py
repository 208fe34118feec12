"""Fidelity of many cache formats on a real model, by emulated teacher-forced decoding.

    python benchmarks/format_search.py --data ../fidelity-data --device cuda --time-budget 400 --json search.json

``--data`` is what ``benchmarks/emulation/packed.py`` wrote. Formats come in order of importance; those that the time
does not reach are left out. ``chosen on`` documents are the first half, ``held out`` the others.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
import traceback
from pathlib import Path

import torch
from emulation.decode import Emulation, measure
from emulation.packed import load_packed
from emulation.variants import variants


def summary(fmt, result: dict, layers: int, head_dim: int, half: int) -> dict:
    key_bits, value_bits = fmt.effective_bits(layers, head_dim)
    kl = result["kl"]
    return {
        "name": fmt.name,
        "key_bits": key_bits,
        "value_bits": value_bits,
        "kl": statistics.fmean(kl),
        "kl_chosen": statistics.fmean(kl[:half]),
        "kl_held_out": statistics.fmean(kl[half:]) if kl[half:] else None,
        "top1": statistics.fmean(result["top1"]),
        "nll": statistics.fmean(result["nll"]),
        "per_document": {name: [round(x, 6) for x in values] for name, values in result.items()},
    }


def short(name: str) -> str:
    """Keys are centred and normalized unless told; ``8+8`` is an e4m3 scale and a zero point relative to it."""
    return name.replace(" centre=mean power=0.5", "").replace("scale=e4m3 zero=rel8", "8+8").replace("feedback", "fb")


def table(rows: list[dict], lines: int) -> None:
    """Known formats and pairs in the order tried; single sides by bits and KL, the best first."""
    pairs = [r for r in rows if r["key_bits"] < 16 and r["value_bits"] < 16 and " exact" not in r["name"]]
    keys = sorted((r for r in rows if r["key_bits"] < 16 <= r["value_bits"]), key=lambda r: r["kl"])
    values = sorted((r for r in rows if r["value_bits"] < 16 <= r["key_bits"]), key=lambda r: r["kl"])

    def show(title, chosen):
        print(f"-- {title}: K/V bits, KL, KL held out, top-1 %")
        for r in chosen:
            held = r["kl_held_out"] if r["kl_held_out"] is not None else float("nan")
            bits = f"{r['key_bits']:.2f}/{r['value_bits']:.2f}"
            print(f"{bits:11s} {r['kl']:.5f} {held:.5f} {100 * r['top1']:.1f}  {short(r['name'])[:95]}")

    show("both sides", pairs[: lines * 5 // 10])
    left = lines - min(len(pairs), lines * 5 // 10)
    for title, side in (("keys", keys), ("values", values)):
        for codes in (2, 3, 4):
            some = [r for r in side if re.search(rf"\[[a-z_]+{codes}[ \]]", r["name"])]
            if some:
                show(f"{title} alone, {codes}-bit codes, best", some[: max(3, left // 6)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--batch", type=int, default=12, help="documents that go through the model together")
    parser.add_argument("--tokens", type=int, default=1536)
    parser.add_argument("--time-budget", type=float, default=400.0, help="seconds from start")
    parser.add_argument("--only", default="", help="only formats whose name holds this")
    parser.add_argument("--limit", type=int, default=10**6, help="at most so many formats")
    parser.add_argument("--lines", type=int, default=84, help="lines of the table")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = False
    data = torch.load(args.data / "documents.pt", weights_only=True)
    tokens = data["tokens"][: args.documents, : args.tokens].long().to(args.device)
    model = load_packed(args.data, args.device)
    layers = model.config.num_hidden_layers
    sets = [Emulation(model, part, args.tokens // 2) for part in tokens.split(args.batch)]
    full = [-s.reference[:, :-1].gather(-1, s.tokens[:, s.prompt + 1 :, None]).mean().item() for s in sets]
    print(f"{len(tokens)} documents, setup {time.perf_counter() - began:.1f} s, full-precision nll {full}", flush=True)
    rows, failed = [], []
    formats = [f for f in variants(layers) if args.only in f.name][: args.limit]
    for fmt in formats:
        if time.perf_counter() - began > args.time_budget:
            break
        try:
            parts = [measure(s, fmt) for s in sets]
        except Exception as error:
            failed.append((fmt.name, traceback.format_exc()))
            print(f"failed: {fmt.name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        result = {name: [x for part in parts for x in part[name]] for name in parts[0]}
        rows.append(summary(fmt, result, layers, model.config.head_dim, min(args.batch, len(tokens))))
        if args.json and len(rows) % 20 == 0:
            write(args.json, rows, failed, data, args, full)
    if args.json:
        write(args.json, rows, failed, data, args, full)
    table(rows, args.lines)
    print(f"{len(rows)} of {len(formats)} formats in {time.perf_counter() - began:.0f} s, {len(failed)} failed")


def write(file: Path, rows, failed, data, args, full) -> None:
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    head = {
        "device": device,
        "torch": torch.__version__,
        "documents": data["names"][: args.documents],
        "nll_full": full,
    }
    file.write_text(json.dumps({**head, "rows": rows, "failed": failed}))


if __name__ == "__main__":
    main()
