"""``innerq::decode_attention`` in Inductor: a partial kernel from a template, and another that combines its results.

    out = decode_attention(q, cache)    ->    parts = triton_tem_innerq_decode_partial_fields(q, cache)
    y = out.transpose(1, 2).reshape()         y = triton_tem_innerq_combine(parts), transposed as y is

By default there is one choice of how the kernel is launched, from the table ``attention.choose_config``, and nothing is
timed. With ``max_autotune`` Inductor times it against :func:`candidates` on inputs like the real ones.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import sympy
import torch

from .. import layout, ops  # noqa: F401  (the operators are registered by their import)
from ..formats import CacheFormat
from ..internals import templates
from ..internals.templates import V, config, ir
from ..triton import attention, supports_decode
from . import dependent, source
from .calls import NotLowered, or_call
from .combine import combine
from .template import template_for

log = logging.getLogger("innerq_compile.lowering")
_CACHE = ("codes", "scales", "window", "state")

OPERATOR = torch.ops.innerq.decode_attention.default


@dataclasses.dataclass(frozen=True)
class TensorView:
    """What ``attention.plan_partials`` asks of a tensor, answered for a node of Inductor's graph."""

    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device
    contiguous: bool

    @classmethod
    def of(cls, node: Any) -> TensorView:
        size, stride = node.get_size(), node.get_stride()
        contiguous = ir.is_contiguous_strides_for_shape(stride, size)
        shape, strides = tuple(map(_number, size)), tuple(map(_number, stride))
        return cls(shape, strides, node.get_dtype(), node.get_device(), contiguous)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def stride(self) -> tuple[Any, ...]:
        return self.strides

    def is_contiguous(self) -> bool:
        return self.contiguous


def _number(expr: Any) -> int | torch.SymInt:
    """An Inductor size as Python's arithmetic takes it: no operation on it makes a guard."""
    expr = sympy.sympify(expr)
    if expr.is_number:
        return int(expr)
    return templates.symint(expr)


def _expr(number: int | torch.SymInt) -> sympy.Expr:
    return number.node.expr if isinstance(number, torch.SymInt) else sympy.Integer(number)


@or_call(OPERATOR)
def lowering(
    query, k_codes, k_scales, k_window, k_state, v_codes, v_scales, v_window, v_state, mask, open_from, sink_logits,
    scale, softcap, causal, k_format, v_format,
):  # fmt: skip
    """The operator as nodes of Inductor's: the partial results of a template, and their combination."""
    device = query.get_device()
    if not templates.runs_triton(device):
        raise NotLowered(f"Triton does not run on {device.type}")
    k_fmt, v_fmt = CacheFormat.parse(k_format), CacheFormat.parse(v_format)
    names = ["query", *(f"{side}_{name}" for side in "kv" for name in _CACHE)]
    given = (query, k_codes, k_scales, k_window, k_state, v_codes, v_scales, v_window, v_state)
    nodes = {name: templates.realized(node) for name, node in zip(names, given, strict=True)}
    batch, heads, rows, _ = query.get_size()
    if mask is not None:
        nodes["mask"] = templates.realized(templates.expand(mask, [batch, heads, rows, mask.get_size()[-1]]))
    views: dict[str, Any] = {name: TensorView.of(node) for name, node in nodes.items()}
    call = (
        views["query"],
        tuple(views[f"k_{name}"] for name in _CACHE),
        tuple(views[f"v_{name}"] for name in _CACHE),
        views.get("mask"),
    )
    if not supports_decode(*call, scale, causal, softcap, sink_logits, k_fmt, v_fmt):
        raise NotLowered(f"no Triton kernel takes {k_format}, {v_format} and a {views['query'].dtype} query")
    sizes = (*views["query"].shape[1:], *views["k_window"].shape[1:], *views["v_window"].shape[1:])
    if not all(isinstance(size, int) for size in sizes):
        raise NotLowered(f"heads, query tokens or head_dim are symbolic: {sizes}")

    sequences = templates.size_hint(_expr(views["query"].shape[0] * views["k_window"].shape[1]))
    query_rows = views["query"].shape[1] // views["k_window"].shape[1] * views["query"].shape[2]
    own = attention.choose_config(sequences, query_rows, views["query"].shape[3], views["v_window"].shape[3])
    launch = attention.plan_partials(*call, causal, softcap, k_fmt, v_fmt, config=own, open_from=open_from)
    if launch.constants.get("OPEN"):
        nodes["open_from"] = templates.realized(open_from)
    launches = [launch]
    if launch.reason:
        log.debug("decode_attention takes the portable kernel: %s", launch.reason)
    elif config.max_autotune:
        shared = launch.splits - own.window_splits  # the results of all choices have one shape
        launches += [
            attention.plan_partials(*call, causal, softcap, k_fmt, v_fmt, shared, other, open_from)
            for other in attention.other_configs(own, query_rows)
        ]

    value_dim = views["v_window"].shape[3]
    splits = _expr(launch.splits)
    rows_of_parts = splits * batch * heads * rows
    parts = templates.fixed_layout(device, torch.float32, [rows_of_parts * (value_dim + 2)])
    inputs = list(nodes.values())
    choices: list[Any] = []
    for one in launches:
        _append_choice(choices, one, inputs, parts, scale, softcap)
    if not choices:
        raise NotLowered("no template could be rendered")
    generators = _generators(nodes, k_fmt, v_fmt) if len(choices) > 1 else None
    node = templates.select("innerq_decode_attention", choices, inputs, parts, generators)
    V.graph.no_fuse_buffer_names.add(node.get_name())  # the template stores its output itself
    most = templates.upper_bound(splits)
    return combine(node, sink_logits, most, (batch, heads, rows, sympy.Integer(value_dim)), query.get_dtype())


def _append_choice(choices: list[Any], launch, inputs, parts: ir.Layout, scale: float, softcap: float) -> None:
    """A template's choice: what is known now are constants of it, symbolic sizes become arguments."""
    constants = {name: size for name, size in launch.sizes.items() if source.is_constant(name)}
    constants |= {"scale": scale, "softcap": softcap}
    constants |= {name: repr(value) if isinstance(value, str) else value for name, value in launch.constants.items()}
    template_for(launch.kernel).maybe_append_choice(
        choices,
        input_nodes=tuple(inputs),
        layout=parts,
        call_sizes=[_expr(size) for size in launch.grid],
        num_warps=launch.options["num_warps"],
        num_stages=3,
        MAXNREG=launch.options.get("maxnreg", 0),
        **dependent.launch_options(parts.device),
        **constants,
    )


def _generators(nodes: dict[str, ir.IRNode], k_fmt: CacheFormat, v_fmt: CacheFormat) -> dict[int, Any]:
    """How Inductor makes inputs to time choices on: random codes, small scales, caches that are full."""
    blocks = templates.size_hint(nodes["k_codes"].get_size()[2])

    def codes(node):
        like = templates.example_value(node)
        return like if like.is_floating_point() else torch.randint_like(like, -(1 << 31), (1 << 31) - 1)

    def scales(node):
        return templates.example_value(node).uniform_(0.0, 0.02)

    def state(node):
        like = templates.example_value(node).zero_()
        like[..., layout.LENGTH] = like[..., layout.PEAK] = k_fmt.sink + blocks * k_fmt.block + k_fmt.recent
        return like

    made = {"codes": codes, "scales": scales, "state": state}
    return {i: made[name[2:]] for i, name in enumerate(nodes) if name[2:] in made}
