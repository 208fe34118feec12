"""Inductor's API for lowerings and Triton templates, with its differences between versions. See ``table/templates.py``.

Imports Inductor and Triton.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._inductor import config, ir
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
    """Register lowerings of operators. If one fails, none is registered.

    Args:
        functions: for each operator overload, the function that maps Inductor's nodes to a node.
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
    """A call of an operator that is not lowered."""
    return fallback_handler(operator, add_to_fallback_set=False)(*args)


def runs_triton(device: torch.device) -> bool:
    """Whether Inductor generates Triton kernels for a device."""
    return device.type == "cuda" or (device.type == "cpu" and config.cpu_backend == "triton")


def realized(node: Any, contiguous: bool = False) -> Any:
    """A node as a buffer, or a view of one, with fixed strides, as templates require."""
    node = ir.ExternKernel.realize_input(node)
    if contiguous:
        node = ir.ExternKernel.require_contiguous(node)
    node.freeze_layout()
    return node


def fixed_layout(device: torch.device, dtype: torch.dtype, sizes: Sequence[Any]) -> ir.FixedLayout:
    """A contiguous layout of shape ``sizes``."""
    return ir.FixedLayout(device, dtype, list(sizes), ir.FlexibleLayout.contiguous_strides(list(sizes)))


def size_hint(expr: Any) -> int:
    """A likely value of a size. Adds no guard. Newer versions call it ``optimization_hint``."""
    sizevars = V.graph.sizevars
    hint = getattr(sizevars, "optimization_hint", None) or sizevars.size_hint  # pyright: ignore
    return int(hint(expr))


def upper_bound(expr: Any) -> int:
    """The largest value that a size can have."""
    return int(V.graph.sizevars.shape_env.bound_sympy(expr).upper)


def symint(expr: Any) -> torch.SymInt:
    """A symbolic size as a SymInt. Operations on it add no guards."""
    return V.graph.sizevars.shape_env.create_symintnode(expr, hint=None)  # pyright: ignore[reportReturnType]


def template_options() -> dict[str, Any]:
    """``always_freeze_layout=True`` for versions of torch with this option; others always freeze layouts."""
    known = inspect.signature(TritonTemplate.__init__).parameters
    return {"always_freeze_layout": True} if "always_freeze_layout" in known else {}


def pointer_to_output(kernel: TritonTemplateKernel) -> Callable[[], str]:
    """Make the hook ``output_argument`` available to a template: the name of the pointer to the output.

    For kernels that store their output themselves. Calling the hook makes the pointer an argument of the kernel.
    """

    def output_argument() -> str:
        return kernel.args.output(kernel.output_node.get_name())

    kernel._register_extra_template_env_fns(output_argument)
    return output_argument


def select(name: str, choices: list[Any], inputs: Sequence[Any], layout: ir.Layout, generators: Any = None) -> Any:
    """The result of the fastest of ``choices``, which are timed if there are several.

    ``autotune_select_algorithm`` returns a node, and since torch 2.12 a node and its choice.

    Args:
        generators: functions that make the tensors for timing, by the index of the input; others are random.
    """
    result: Any = autotune_select_algorithm(name, choices, list(inputs), layout, input_gen_fns=generators)
    return result[0] if isinstance(result, tuple) else result


def example_value(node: Any) -> torch.Tensor:
    """A random tensor like ``node``, for timing choices."""
    return AlgorithmSelectorCache.benchmark_example_value(node)
