"""Time of decode attention on a GPU with a mask, with and without ``open_from``. Every result is checked.

    python benchmarks/masks.py [--rows base-32K,base-B1-8K]

Masks hide nothing, like those of a batch without padding. Times are of the operator in a CUDA graph, as in
``decode_attention.py``; ``open_from`` itself, compiled, runs once a step for all layers.
"""

from __future__ import annotations

import argparse
import dataclasses

import tables
import torch
from decode_attention import ROWS, copies_for, error, graph_us, make_call, reference_output

from innerq_compile.kernels import masks
from innerq_compile.kernels.triton import attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="base-32K,base-B1-8K,base-D64-G3,base-G16")
    names = parser.parse_args().rows.split(",")
    table = []
    opened_of = torch.compile(masks.open_from, fullgraph=True)
    for row in (row for row in ROWS if row.name in names):
        generator = torch.Generator(device="cuda").manual_seed(0)
        calls = [make_call(row, generator) for _ in range(copies_for(row.read_bytes))]
        wanted = reference_output(row, calls[0])
        seen = torch.ones((row.batch, 1, row.rows, row.tokens), dtype=torch.bool, device="cuda")
        added = torch.zeros(seen.shape, dtype=row.torch_dtype, device="cuda")
        for name, mask in (("none", None), ("boolean", seen), ("added", added)):
            masked = [dataclasses.replace(call, mask=mask, causal=False) for call in calls]
            everywhere = graph_us([lambda c=c: attention.decode_attention(c) for c in masked])
            skipped = own = 0.0
            if mask is not None:
                state = calls[0].keys.state
                opened = opened_of(mask, state, row.rows)
                masked = [dataclasses.replace(call, open_from=opened) for call in masked]
                skipped = graph_us([lambda c=c: attention.decode_attention(c) for c in masked])
                own = graph_us([lambda m=mask, s=state, r=row.rows: opened_of(m, s, r)])
            wrong = error(attention.decode_attention(masked[0]), wanted)
            assert wrong < 3e-3, f"{row.name}, mask {name}: error {wrong:.1e}"
            cells = (row.name, name, *(f"{us:.1f}" for us in (everywhere, skipped, own)), f"{wrong:.1e}")
            tables.console.print(*cells)
            table.append(cells)
        del calls, masked
    columns = ("row", "mask", "read everywhere, us", "with open_from, us", "open_from itself, us", "error")
    tables.show(columns, table, title=f"{torch.cuda.get_device_name()}, torch {torch.__version__}", words=2)


if __name__ == "__main__":
    main()
