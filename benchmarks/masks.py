"""What a mask costs decode attention on a GPU, with and without ``open_from``; every result is checked.

    python benchmarks/masks.py [--rows base-32K,base-B1-8K]

Masks hide a little padding in front (left-padded batches) and nothing else. Times are of the operator in a CUDA graph,
as in ``decode_attention.py``; those of ``open_from`` itself, compiled, are once a step for all layers.
"""

from __future__ import annotations

import argparse

import tables
import torch
from decode_attention import ROWS, arguments, copies_for, error, graph_us, make_caches, reference_output

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
        sets = [make_caches(row, generator) for _ in range(copies_for(row.read_bytes))]
        wanted = reference_output(row, *sets[0])
        seen = torch.ones((row.batch, 1, row.rows, row.tokens), dtype=torch.bool, device="cuda")
        added = torch.zeros(seen.shape, dtype=row.torch_dtype, device="cuda")
        for name, mask in (("none", None), ("boolean", seen), ("added", added)):
            calls = [arguments(row, *one) for one in sets]
            calls = [(*call[:3], mask, *call[4:5], False, *call[6:]) for call in calls]
            everywhere = graph_us([lambda a=a: attention.decode_attention(*a) for a in calls])
            skipped = own = 0.0
            opened = None
            if mask is not None:
                state = sets[0][1][3]
                opened = opened_of(mask, state, row.rows)
                skipped = graph_us([lambda a=a, o=opened: attention.decode_attention(*a, open_from=o) for a in calls])
                own = graph_us([lambda m=mask, s=state, r=row.rows: opened_of(m, s, r)])
            wrong = error(attention.decode_attention(*calls[0], open_from=opened), wanted)
            assert wrong < 3e-3, f"{row.name}, mask {name}: error {wrong:.1e}"
            cells = (row.name, name, *(f"{us:.1f}" for us in (everywhere, skipped, own)), f"{wrong:.1e}")
            tables.console.print(*cells)
            table.append(cells)
        del sets
    columns = ("row", "mask", "read everywhere, us", "with open_from, us", "open_from itself, us", "error")
    tables.show(columns, table, title=f"{torch.cuda.get_device_name()}, torch {torch.__version__}", words=2)


if __name__ == "__main__":
    main()
