"""``innerq::decode_attention`` in Inductor: two templates, for the partial kernel and for combining its results.

    out = decode_attention(q, cache)    ->    parts = triton_tem_innerq_decode_partial_fields(q, cache)
    y = out.transpose(1, 2).reshape()         y = triton_tem_innerq_combine(parts), transposed as y is

By default the launch configuration is ``attention.choose_config``, and nothing is timed. With ``max_autotune`` Inductor
times it and ``attention.other_configs`` on random inputs.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import sympy
import torch

from .. import layout, ops  # noqa: F401  (the operators are registered by their import)
from ..attention_call import AttentionCall
from ..formats import CacheFormat
from ..internals import templates
from ..internals.templates import V, config, ir
from ..triton import attention, supports_decode
from . import dependent, source
from .calls import NotLowered, or_call
from .combine import combine
from .template import template_for

log = logging.getLogger("innerq_compile.lowering")

OPERATOR = torch.ops.innerq.decode_attention.default


@dataclasses.dataclass(frozen=True)
class TensorView:
    """The properties of a tensor that ``attention.plan_partials`` reads, for a node of Inductor's IR."""

    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device
    contiguous: bool

    @classmethod
    def of(cls, node: Any) -> TensorView:
        """What a realized node of Inductor's looks like."""
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
    """A size of Inductor as an int or a SymInt. Arithmetic on it adds no guards."""
    expr = sympy.sympify(expr)
    if expr.is_number:
        return int(expr)
    return templates.symint(expr)


def _expr(number: int | torch.SymInt) -> sympy.Expr:
    return number.node.expr if isinstance(number, torch.SymInt) else sympy.Integer(number)


@or_call(OPERATOR)
def lowering(*arguments: Any) -> Any:
    """Lower the operator to two templates: partial results, and their combination."""
    given = AttentionCall.of(arguments)
    device = given.query.get_device()
    if not templates.runs_triton(device):
        raise NotLowered(f"Triton does not run on {device.type}")
    batch, heads, rows, _ = given.query.get_size()
    mask = given.mask
    if mask is not None:
        mask = templates.realized(templates.expand(mask, [batch, heads, rows, mask.get_size()[-1]]))
    value_query = None if given.value_query is None else templates.realized(given.value_query)
    query, keys, values = (
        templates.realized(given.query),
        given.keys.map(templates.realized),
        given.values.map(templates.realized),
    )
    call: AttentionCall[Any] = dataclasses.replace(
        given,
        query=TensorView.of(query),
        keys=keys.map(TensorView.of),
        values=values.map(TensorView.of),
        mask=None if mask is None else TensorView.of(mask),
        dropped=_number(given.dropped),
        value_query=None if value_query is None else TensorView.of(value_query),
    )
    if not supports_decode(call):
        formats = f"{call.keys.format.spec}, {call.values.format.spec}"
        raise NotLowered(f"no Triton kernel takes {formats} and a {call.query.dtype} query")
    k_window, v_window = call.keys.window, call.values.window
    sizes = (*call.query.shape[1:], *k_window.shape[1:], *v_window.shape[1:])
    if not all(isinstance(size, int) for size in sizes):
        raise NotLowered(f"heads, query tokens or head_dim are symbolic: {sizes}")

    sequences = templates.size_hint(_expr(call.query.shape[0] * k_window.shape[1]))
    query_rows = call.query.shape[1] // k_window.shape[1] * call.query.shape[2]
    own = attention.choose_config(sequences, query_rows, call.query.shape[3], v_window.shape[3])
    launch = attention.plan_partials(call, config=own)
    # by the names that the kernels have for them
    nodes = {"query": query}
    for prefix, cache in (("k_", keys), ("v_", values)):
        nodes |= {prefix + name: node for name, node in cache.present().items()}
    if mask is not None:
        nodes["mask"] = mask
    if value_query is not None:
        nodes["value_query"] = value_query
    if launch.constants.get("OPEN"):
        nodes["open_from"] = templates.realized(given.open_from)
    launches = [launch]
    if launch.reason:
        log.debug("decode_attention takes the portable kernel: %s", launch.reason)
    elif config.max_autotune:
        shared = launch.splits - own.window_splits  # the results of all choices have one shape
        launches += [attention.plan_partials(call, shared, other) for other in attention.other_configs(own, query_rows)]

    value_dim = v_window.shape[3]
    splits = _expr(launch.splits)
    rows_of_parts = splits * batch * heads * rows
    parts = templates.fixed_layout(device, torch.float32, [rows_of_parts * (value_dim + 2)])
    inputs = list(nodes.values())
    choices: list[Any] = []
    for one in launches:
        _append_choice(choices, one, inputs, parts, given.scale, given.softcap)
    if not choices:
        raise NotLowered("no template could be rendered")
    generators = _generators(nodes, call.keys.format) if len(choices) > 1 else None
    node = templates.select("innerq_decode_attention", choices, inputs, parts, generators)
    V.graph.no_fuse_buffer_names.add(node.get_name())  # the template stores its output itself
    most = templates.upper_bound(splits)
    shape = (batch, heads, rows, sympy.Integer(value_dim))
    return combine(node, given.sink_logits, most, shape, given.query.get_dtype())


def _append_choice(choices: list[Any], launch, inputs, parts: ir.Layout, scale: float, softcap: float) -> None:
    """Append a choice of a template. Known sizes are its constants, symbolic ones become arguments of the kernel."""
    constants = {name: size for name, size in launch.sizes.items() if source.is_constant(name)}
    constants |= {"scale": scale, "softcap": softcap}
    constants |= {name: repr(value) if isinstance(value, str) else value for name, value in launch.constants.items()}
    template_for(launch.kernel).maybe_append_choice(
        choices,
        input_nodes=tuple(inputs),
        layout=parts,
        call_sizes=[_expr(size) for size in (*launch.grid, launch.sizes["dropped"])],
        num_warps=launch.options["num_warps"],
        num_stages=3,
        MAXNREG=launch.options.get("maxnreg", 0),
        **dependent.launch_options(parts.device),
        **constants,
    )


def _generators(nodes: dict[str, ir.IRNode], k_fmt: CacheFormat) -> dict[int, Any]:
    """How inputs for timing are made, by their index: random codes, small scales, full caches."""
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
