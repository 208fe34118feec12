"""``innerq::row_linear`` in Inductor: a template into which the operations after it are fused.

    y = row_linear(x, [w_o], [None])                ->    z = triton_tem_innerq_row_linear_0(x, w_o, residual)
    z = residual + y

There is one template per number of layers and pattern of biases. By default the launch is ``linear.choose_launch``;
with ``max_autotune`` Inductor times it and others.
"""

from __future__ import annotations

import functools
from typing import Any

import sympy
import torch

from .. import ops  # noqa: F401  (the operators are registered by their import)
from ..internals import templates
from ..internals.templates import SymbolicGridFn, TritonTemplate, V, config, ir
from ..triton import linear as kernels
from ..triton import support
from . import dependent, source
from .calls import NotLowered, or_call

OPERATOR = torch.ops.innerq.row_linear.default


@SymbolicGridFn
def _grid(tiles, meta):
    return tiles, 1, 1


def template_source(biases: tuple[bool, ...]) -> str:
    """The Jinja template, with one branch per layer. ``biases``: whether each layer has one.

    Layer ``i`` has ``WIDTH<i>`` outputs; ``TILE<i>`` and ``FIRST<i>`` are its first tile and its first output.
    """
    count = range(len(biases))
    tensors = ["x", *(f"w{i}" for i in count), *(f"b{i}" for i in count if biases[i])]
    lines = [f"{{{{ def_kernel({', '.join(repr(name) for name in tensors)}) }}}}", "    tile = tl.program_id(0)"]
    indent = "    "
    for i in count:
        inner = indent
        if i + 1 < len(biases):
            lines.append(f"{indent}if tile < TILE{i + 1}:")
            inner += "    "
        bias = f"b{i}" if biases[i] else "None"
        lines += [
            f"{inner}n = (tile - TILE{i}) * BN + tl.arange(0, BN)",
            f"{inner}acc = product_of_row(x, w{i}, {bias}, n, WIDTH{i}, K, BN, BK, PDL, AHEAD)",
            f"{inner}mask = n < WIDTH{i}",
            f"{inner}idx_n = n + FIRST{i}",
        ]
        if i + 1 < len(biases):
            lines.append(f"{indent}else:")
            indent = inner
    lines.append('    {{ store_output(("idx_n",), "acc", "mask", val_shape=("BN",)) }}')
    text = "\n".join(lines) + "\n"
    return text + "\n\n{% raw %}\n" + source.library(kernels.product_of_row) + "{% endraw %}\n"


@functools.cache
def template_for(biases: tuple[bool, ...]) -> TritonTemplate:
    """The template of :func:`template_source`."""
    name = "innerq_row_linear_" + "".join(str(int(bias)) for bias in biases)
    return TritonTemplate(name, _grid, template_source(biases), **templates.template_options())


@or_call(OPERATOR)
def lowering(x: Any, weights: list[Any], biases: list[Any]) -> Any:
    """Lower the operator to a template."""
    device, dtype = x.get_device(), x.get_dtype()
    if not templates.runs_triton(device):
        raise NotLowered(f"Triton does not run on {device.type}")
    layers = [tensor for tensor in (*weights, *biases) if tensor is not None]
    if dtype not in support.KERNEL_DTYPES or any(tensor.get_dtype() != dtype for tensor in layers):
        raise NotLowered(f"no kernel takes a row of {dtype}, or layers of another dtype than the row")
    nodes = [templates.realized(tensor, contiguous=True) for tensor in (x, *layers)]
    inputs = int(x.get_size()[-1])
    widths = [int(weight.get_size()[0]) for weight in weights]
    layout = templates.fixed_layout(device, dtype, [sympy.Integer(sum(widths))])
    own = kernels.choose_launch(inputs)
    launches = [own, *(kernels.other_launches(own, inputs) if config.max_autotune else ())]
    choices: list[Any] = []
    ahead = _written_before(nodes[0]) and not any(map(_written_before, nodes[1:]))
    for launch in launches:
        tiles = first = 0
        places = {}
        for i, width in enumerate(widths):
            places |= {f"WIDTH{i}": width, f"TILE{i}": tiles, f"FIRST{i}": first}
            tiles, first = tiles + -(-width // launch.outputs), first + width
        template_for(tuple(bias is not None for bias in biases)).maybe_append_choice(
            choices,
            input_nodes=tuple(nodes),
            layout=layout,
            call_sizes=[sympy.Integer(tiles)],
            num_warps=launch.num_warps,
            num_stages=1,
            K=inputs,
            BN=launch.outputs,
            BK=launch.inputs,
            **places,
            AHEAD=ahead,
            **dependent.launch_options(device),
        )
    if not choices:
        raise NotLowered("no template could be rendered")
    node = templates.select("innerq_row_linear", choices, nodes, layout)
    return templates.view(node, [*x.get_size()[:-1], sympy.Integer(sum(widths))])


def _written_before(node: ir.IRNode) -> bool:
    """Whether a kernel of this graph writes a tensor before this point. (``mutated_inputs`` is not complete yet.)"""
    name = node.get_name()
    constant = name in V.graph.graph_inputs or name in V.graph.constants
    return not constant or name in V.graph.mutated_buffers
