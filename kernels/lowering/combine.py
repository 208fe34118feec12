"""The combination of splits in Inductor: a template into which the cast and transposition after it are fused.

    out = sum_i 2^(max_i - max) out_i / sum_i 2^(max_i - max) sum_i          (``triton/combine.py``)

As reductions of Inductor, each program would load the maximum and the sum of all splits once for each element of the
result, which takes four times as long (12.6 us for some 200 splits, on an H100).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sympy
import torch

from ..internals import templates
from ..internals.templates import SymbolicGridFn, TritonTemplate, ir
from ..triton import combine as kernels
from ..triton import support
from ..triton.dependent import wait_for_others
from . import dependent, source


@SymbolicGridFn
def _grid(rows, tiles, meta):
    return rows, tiles, 1


def template_source(sinks: bool, single: bool, by_row: bool = False) -> str:
    """The Jinja template, with or without sink logits, for one query token (``single``) or several.

    With ``by_row`` sink logits are one for each row, else one for each head.

    The result is ``[B, N, Hq, Dv]`` in memory, as the projection that follows reads it. Inductor fuses operations over
    the same dimensions as the result: for a single token these are ``[B, Hq * Dv]``.
    """
    tensors = ["parts", "sink_logits"] if sinks else ["parts"]
    lines = [
        f"{{{{ def_kernel({', '.join(map(repr, tensors))}) }}}}",
        "    wait_for_others(PDL)",
        "    row = tl.program_id(0)",
        "    column = tl.program_id(1) * COLS + tl.arange(0, COLS)",
        "    rows = tl.num_programs(0).to(tl.int64)",
        '    splits = ({{ size("parts", 0) }}) // (rows * (D + 2))',
        "    part_max = parts + splits * rows * D",
        "    acc = combined(",
        "        parts, part_max, part_max + splits * rows, " + ("sink_logits," if sinks else "None,"),
        f"        row.to(tl.int64), column, rows, {'rows, 1' if by_row else 'HQ, N'}, splits, SPLITS, D,",
        "    )",
        "    mask = column < D",
        "    idx_b = row // (HQ * N)",
    ]
    if single:
        lines.append("    idx_d = row % HQ * D + column")
        indices = '"idx_b", "idx_d"'
    else:
        lines += ["    idx_n = row % N", "    idx_h = row // N % HQ", "    idx_d = column"]
        indices = '"idx_b", "idx_n", "idx_h", "idx_d"'
    lines.append(f'    {{{{ store_output(({indices}), "acc", "mask", val_shape=("COLS",)) }}}}')
    library = source.library(kernels.combined, wait_for_others)
    return "\n".join(lines) + "\n\n\n{% raw %}\n" + library + "{% endraw %}\n"


@functools.cache
def template_for(sinks: bool, single: bool, by_row: bool = False) -> TritonTemplate:
    """The template of :func:`template_source`."""
    name = "innerq_combine" + "_sinks" * sinks + "_by_row" * by_row + "_rows" * (not single)
    return TritonTemplate(name, _grid, template_source(sinks, single, by_row), **templates.template_options())


def combine(
    parts: ir.IRNode, sink_logits: ir.TensorBox | None, most: int, shape: Sequence[sympy.Expr], dtype: torch.dtype
) -> ir.TensorBox:
    """Combine the results of a partial kernel to ``[B, Hq, N, Dv]`` in ``dtype``.

    Args:
        parts: the results of ``attention.decode_partials``, in one dimension.
        sink_logits: ``[Hq]`` or ``[B, Hq, N]``, or None.
        most: an upper bound of the number of splits.
        shape: B, Hq, N, Dv.
        dtype: of the result.
    """
    batch, heads, rows, width = shape
    single = rows == 1
    nodes = [templates.realized(parts)]
    if sink_logits is not None:
        nodes.append(templates.realized(sink_logits, contiguous=True))
    sizes = [batch, heads * width] if single else [batch, rows, heads, width]
    layout = templates.fixed_layout(nodes[0].get_device(), dtype, sizes)
    choices: list[Any] = []
    by_row = sink_logits is not None and len(sink_logits.get_size()) == 3
    template_for(sink_logits is not None, single, by_row).maybe_append_choice(
        choices,
        input_nodes=tuple(nodes),
        layout=layout,
        call_sizes=[batch * heads * rows, -(-width // kernels.COLUMNS)],
        num_warps=kernels.num_warps(most),
        num_stages=1,
        HQ=int(heads),
        N=int(rows),
        SPLITS=support.next_power_of_2(most),
        D=int(width),
        COLS=kernels.COLUMNS,
        **dependent.launch_options(layout.device),
    )
    node = templates.select("innerq_combine", choices, nodes, layout)
    return templates.permute(templates.view(node, [batch, rows, heads, width]), [0, 2, 1, 3])
