"""Linear layers of one row: ``innerq::row_linear`` and cuBLAS at the shapes of a model.

    python benchmarks/row_linear.py                                       # 8B Llama
    python benchmarks/row_linear.py --shapes 6144x4096 4096,1024,1024x4096 --sweep

Calls go through more weights than the L2 cache holds, and are recorded in CUDA graphs, as in a decode step.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import tables
import torch
import torch.nn.functional as F
import triton

from innerq_compile.kernels.triton import linear

#: q, k and v; o; gate and up; down; head.
LLAMA_8B = ["4096,1024,1024x4096", "4096x4096", "14336,14336x4096", "4096x14336", "128256x4096"]
ROTATED_BYTES = 400e6
TOLERANCE = 2e-3


def microseconds(call: Callable[[list[torch.Tensor]], object], rotated: list[list[torch.Tensor]]) -> float:
    """Median microseconds of a call, in graphs that call it with each of ``rotated``."""
    call(rotated[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weights in rotated:
            call(weights)
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / len(rotated))
    return statistics.median(times[3:])


def measure(shape: str, dtype: torch.dtype, sweep: bool) -> dict:
    """Figures of one shape, ``N,N,...xK``. Exits if a result is wrong."""
    outputs, inputs = shape.split("x")
    widths, inputs = [int(width) for width in outputs.split(",")], int(inputs)
    count = dtype.itemsize * sum(widths) * inputs
    x = torch.randn(1, 1, inputs, device="cuda", dtype=dtype)
    rotated = [
        [torch.randn(width, inputs, device="cuda", dtype=dtype) / inputs**0.5 for width in widths]
        for _ in range(min(8, max(1, int(ROTATED_BYTES / count))))
    ]
    none = [None] * len(widths)
    expected = torch.cat([F.linear(x.float(), weight.float()) for weight in rotated[0]], -1)
    own = linear.choose_launch(inputs)
    result = {"shape": shape, "library_us": microseconds(lambda ws: [F.linear(x, w) for w in ws], rotated)}
    launches = [own, *(linear.other_launches(own, inputs) if sweep else ())]
    for launch in launches:
        found = linear.row_linear(x, rotated[0], none, launch).float()
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error < TOLERANCE:
            raise SystemExit(f"{shape}, {launch}: error {error:.1e}")
        us = microseconds(lambda ws, launch=launch: linear.row_linear(x, ws, none, launch), rotated)
        if launch == own:
            result |= {"us": us, "gb_per_s": count / us / 1e3}
        result.setdefault("launches", []).append({**vars(launch), "us": us})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=LLAMA_8B, help="outputs of the layers x inputs, as 4096,1024x512"
    )
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--sweep", action="store_true", help="also time the other launches that max_autotune tries")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    torch.manual_seed(0)
    results = [measure(shape, getattr(torch, args.dtype), args.sweep) for shape in args.shapes]
    head = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    rows = []
    for row in results:
        cells = [f"{row['library_us']:.1f}", f"{row['us']:.1f}", f"{row['library_us'] / row['us']:.2f}"]
        cells.append(f"{row['gb_per_s']:.0f}")
        if args.sweep:
            ordered = sorted(row["launches"], key=lambda launch: launch["us"])
            best = "{outputs}, {inputs}, {num_warps}: {us:.1f}".format(**ordered[0])
            cells.append(f"{best} to {ordered[-1]['us']:.1f}")
        rows.append((row["shape"], *cells))
    columns = ["layers", "library, us", "row_linear, us", "ratio", "GB/s"]
    tables.show([*columns, "best and worst launch, us"][: 5 + args.sweep], rows, title=", ".join(head.values()))
    if args.json:
        args.json.write_text(json.dumps({**head, "dtype": args.dtype, "results": results}, indent=1))


if __name__ == "__main__":
    main()
