"""The combination of the splits in Inductor: a template that the cast and transposition behind it are fused into.

    out = sum_i 2^(max_i - max) out_i / sum_i 2^(max_i - max) sum_i          (``triton/combine.py``)

As reductions in Inductor's own terms each program would load the maximum and the sum of all splits once for every
element of the result: 12.6 us with some 200 splits on an H100, where this takes a quarter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch._inductor import ir
from torch._inductor.lowering import view
from torch._inductor.select_algorithm import SymbolicGridFn, TritonTemplate, autotune_select_algorithm

from ..triton import combine as kernels
from ..triton import support
from . import _compat, source


@SymbolicGridFn
def _grid(rows, tiles, meta):
    return rows, tiles, 1


def template_source(sinks: bool) -> str:
    """The Jinja template, with sink logits or without."""
    tensors = ["parts", "sink_logits"] if sinks else ["parts"]
    lines = [
        f"{{{{ def_kernel({', '.join(map(repr, tensors))}) }}}}",
        "    idx_row = tl.program_id(0)",
        "    idx_column = tl.program_id(1) * COLS + tl.arange(0, COLS)",
        "    rows = tl.num_programs(0).to(tl.int64)",
        '    splits = ({{ size("parts", 0) }}) // (rows * (D + 2))',
        "    part_max = parts + splits * rows * D",
        "    acc = combined(",
        "        parts, part_max, part_max + splits * rows, " + ("sink_logits," if sinks else "None,"),
        "        idx_row.to(tl.int64), idx_column, rows, HQ, N, splits, SPLITS, D,",
        "    )",
        "    mask = idx_column < D",
        '    {{ store_output(("idx_row", "idx_column"), "acc", "mask", val_shape=("COLS",)) }}',
    ]
    return "\n".join(lines) + "\n\n\n{% raw %}\n" + source.library(kernels.combined) + "{% endraw %}\n"


@functools.cache
def template_for(sinks: bool) -> TritonTemplate:
    name = "innerq_combine_sinks" if sinks else "innerq_combine"
    return TritonTemplate(name, _grid, template_source(sinks), **_compat.template_options())


def combine(
    parts: ir.IRNode, sink_logits: ir.TensorBox | None, most: int, shape: Sequence[sympy.Expr], dtype: torch.dtype
) -> ir.TensorBox:
    """Results of a partial kernel (``attention.decode_partials``, in one dimension) to ``[B, Hq, N, Dv]`` in ``dtype``.

    Args:
        most: a bound of the number of splits that is known now.
    """
    batch, heads, rows, width = shape
    count = batch * heads * rows
    nodes = [_compat.realized(parts)]
    if sink_logits is not None:
        nodes.append(_compat.realized(sink_logits, contiguous=True))
    layout = ir.FixedLayout(nodes[0].get_device(), dtype, [count, width], [width, sympy.S.One])
    choices: list[Any] = []
    template_for(sink_logits is not None).maybe_append_choice(
        choices,
        input_nodes=tuple(nodes),
        layout=layout,
        call_sizes=[count, -(-width // kernels.COLUMNS)],
        num_warps=kernels.num_warps(most),
        num_stages=1,
        HQ=int(heads),
        N=int(rows),
        SPLITS=support.next_power_of_2(most),
        D=int(width),
        COLS=kernels.COLUMNS,
    )
    return view(_compat.selected(autotune_select_algorithm("innerq_combine", choices, nodes, layout)), list(shape))
