"""What lowerings use of Inductor, with the differences between torch 2.11 and 2.13. See ``table/templates.py``.

Imports Inductor and Triton.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._inductor import config, ir
from torch._inductor.codegen.triton import texpr
from torch._inductor.lowering import expand, fallback_handler, lowerings, permute, register_lowering, view
from torch._inductor.select_algorithm import (
    AlgorithmSelectorCache,
    SymbolicGridFn,
    TritonTemplate,
    TritonTemplateKernel,
    autotune_select_algorithm,
)
from torch._inductor.virtualized import V
from triton.runtime.jit import ConstexprFunction

__all__ = [
    "ConstexprFunction",
    "SymbolicGridFn",
    "TritonTemplate",
    "TritonTemplateKernel",
    "V",
    "call_size_hook",
    "config",
    "example_value",
    "expand",
    "fall_back",
    "fixed_layout",
    "ir",
    "permute",
    "pointer_to_output",
    "realized",
    "register",
    "runs_triton",
    "select",
    "size_hint",
    "symint",
    "template_options",
    "upper_bound",
    "view",
]


def register(functions: Mapping[Any, Callable[..., Any]]) -> None:
    """Register lowerings of operators. If one cannot be registered, none is, and its exception is raised.

    Args:
        functions: for each operator (an overload), a function of Inductor's IR nodes that returns a node.
    """
    known = set(lowerings)
    try:
        for operator, function in functions.items():
            register_lowering(operator, type_promotion_kind=None)(function)
    except BaseException:
        for name in set(lowerings) - known:
            del lowerings[name]
        raise


def fall_back(operator: Any, *args: Any) -> Any:
    """A call of the operator itself, not lowered."""
    return fallback_handler(operator, add_to_fallback_set=False)(*args)


def runs_triton(device: torch.device) -> bool:
    """Whether Inductor generates Triton kernels for a device."""
    return device.type == "cuda" or (device.type == "cpu" and config.cpu_backend == "triton")


def realized(node: Any, contiguous: bool = False) -> Any:
    """A buffer, or a view of one, with fixed strides: an input of a template."""
    node = ir.ExternKernel.realize_input(node)
    if contiguous:
        node = ir.ExternKernel.require_contiguous(node)
    node.freeze_layout()
    return node


def fixed_layout(device: torch.device, dtype: torch.dtype, sizes: Sequence[Any]) -> ir.FixedLayout:
    """The layout of a contiguous result."""
    return ir.FixedLayout(device, dtype, list(sizes), ir.FlexibleLayout.contiguous_strides(list(sizes)))


def size_hint(expr: Any) -> int:
    """A likely value of a size. Adds no guard. ``optimization_hint`` is the name in newer versions."""
    sizevars = V.graph.sizevars
    hint = getattr(sizevars, "optimization_hint", None) or sizevars.size_hint  # pyright: ignore
    return int(hint(expr))


def upper_bound(expr: Any) -> int:
    """The largest possible value of a size."""
    return int(V.graph.sizevars.shape_env.bound_sympy(expr).upper)


def symint(expr: Any) -> torch.SymInt:
    """A symbolic size as a SymInt without a hint: arithmetic on it adds no guards."""
    return V.graph.sizevars.shape_env.create_symintnode(expr, hint=None)  # pyright: ignore[reportReturnType]


def template_options() -> dict[str, Any]:
    """``always_freeze_layout`` for versions that have the option. In others, templates always freeze layouts."""
    known = inspect.signature(TritonTemplate.__init__).parameters
    return {"always_freeze_layout": True} if "always_freeze_layout" in known else {}


def pointer_to_output(kernel: TritonTemplateKernel) -> Callable[[], str]:
    """Define the hook ``output_argument`` for the source of a template: the name of the pointer to the output.

    For kernels that store their output themselves. The pointer becomes an argument of the kernel.
    """

    def output_argument() -> str:
        return kernel.args.output(kernel.output_node.get_name())

    kernel._register_extra_template_env_fns(output_argument)
    return output_argument


def call_size_hook(kernel: TritonTemplateKernel) -> Callable[[int], str]:
    """Define the hook ``call_size`` for the source of a template: one of its ``call_sizes`` as text.

    Symbols in it become arguments of the kernel, as those of the hook ``size`` do for sizes of tensors.
    """

    def call_size(index: int) -> str:
        return texpr(kernel.rename_indexing(kernel.call_sizes[index]))

    kernel._register_extra_template_env_fns(call_size)
    return call_size


def select(name: str, choices: list[Any], inputs: Sequence[Any], layout: ir.Layout, generators: Any = None) -> Any:
    """The result of the fastest of ``choices``; with a single one nothing is timed.

    ``autotune_select_algorithm`` returns a node; since torch 2.12 it returns the node and the choice.

    Args:
        generators: for indices of inputs, functions that make the tensor on which choices are timed.
    """
    result: Any = autotune_select_algorithm(name, choices, list(inputs), layout, input_gen_fns=generators)
    return result[0] if isinstance(result, tuple) else result


def example_value(node: Any) -> torch.Tensor:
    """A tensor with the sizes and strides of ``node`` and random contents, for timing."""
    return AlgorithmSelectorCache.benchmark_example_value(node)
