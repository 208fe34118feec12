"""What lowerings ask of Inductor, and where the Inductors of torch 2.11 to 2.13 differ. See ``table/templates.py``.

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
    """Register lowerings of operators: all of them, or none where one fails.

    Args:
        functions: for each operator, an overload, the function from nodes of Inductor's to a node.
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
    """The call of an operator as it stands."""
    return fallback_handler(operator, add_to_fallback_set=False)(*args)


def runs_triton(device: torch.device) -> bool:
    """Whether Inductor makes Triton kernels for a device."""
    return device.type == "cuda" or (device.type == "cpu" and config.cpu_backend == "triton")


def realized(node: Any, contiguous: bool = False) -> Any:
    """A buffer or a view of one, with the strides that it will have: what a template takes."""
    node = ir.ExternKernel.realize_input(node)
    if contiguous:
        node = ir.ExternKernel.require_contiguous(node)
    node.freeze_layout()
    return node


def fixed_layout(device: torch.device, dtype: torch.dtype, sizes: Sequence[Any]) -> ir.FixedLayout:
    """The layout of a result of ``sizes`` that is contiguous."""
    return ir.FixedLayout(device, dtype, list(sizes), ir.FlexibleLayout.contiguous_strides(list(sizes)))


def size_hint(expr: Any) -> int:
    """A likely value of a size, without a guard. ``optimization_hint`` is the newer name."""
    sizevars = V.graph.sizevars
    hint = getattr(sizevars, "optimization_hint", None) or sizevars.size_hint  # pyright: ignore
    return int(hint(expr))


def upper_bound(expr: Any) -> int:
    """The largest value that a size can have."""
    return int(V.graph.sizevars.shape_env.bound_sympy(expr).upper)


def symint(expr: Any) -> torch.SymInt:
    """A symbolic size as Python's arithmetic takes it. No operation on it makes a guard."""
    return V.graph.sizevars.shape_env.create_symintnode(expr, hint=None)  # pyright: ignore[reportReturnType]


def template_options() -> dict[str, Any]:
    """``always_freeze_layout`` where templates know it; elsewhere they always do."""
    known = inspect.signature(TritonTemplate.__init__).parameters
    return {"always_freeze_layout": True} if "always_freeze_layout" in known else {}


def pointer_to_output(kernel: TritonTemplateKernel) -> Callable[[], str]:
    """Give the text of a template the hook ``output_argument``: the name of the pointer to the output.

    For kernels that store their output themselves. The pointer becomes an argument of the kernel.
    """

    def output_argument() -> str:
        return kernel.args.output(kernel.output_node.get_name())

    kernel._register_extra_template_env_fns(output_argument)
    return output_argument


def select(name: str, choices: list[Any], inputs: Sequence[Any], layout: ir.Layout, generators: Any = None) -> Any:
    """The result of one of ``choices``: of the only one, or of the fastest.

    ``autotune_select_algorithm`` gives a node; since torch 2.12 it gives the choice with it.

    Args:
        generators: for some of the inputs, by their place, how to make a tensor to time the choices on.
    """
    result: Any = autotune_select_algorithm(name, choices, list(inputs), layout, input_gen_fns=generators)
    return result[0] if isinstance(result, tuple) else result


def example_value(node: Any) -> torch.Tensor:
    """A tensor like ``node``, with random contents, to time choices on."""
    return AlgorithmSelectorCache.benchmark_example_value(node)
