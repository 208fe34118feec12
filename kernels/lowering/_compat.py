"""What the lowerings ask of Inductor, in one place where the Inductors of torch 2.11 to 2.13 differ."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch._inductor import config, ir, select_algorithm
from torch._inductor.virtualized import V

from ..triton import dependent


def runs_triton(device: torch.device) -> bool:
    """Whether Inductor makes Triton kernels for a device."""
    return device.type == "cuda" or (device.type == "cpu" and config.cpu_backend == "triton")


def realized(node: ir.TensorBox, contiguous: bool = False) -> ir.IRNode:
    """A buffer or a view of one, with the strides that it will have: what a template takes."""
    node = ir.ExternKernel.realize_input(node)
    if contiguous:
        node = ir.ExternKernel.require_contiguous(node)
    node.freeze_layout()
    return node


def size_hint(expr: Any) -> int:
    """A likely value of a size, without a guard. ``optimization_hint`` is the newer name."""
    sizevars = V.graph.sizevars
    hint = getattr(sizevars, "optimization_hint", None) or sizevars.size_hint
    return int(hint(expr))


def selected(result: Any) -> Any:
    """The node in what ``autotune_select_algorithm`` returns: torch 2.12 added the choice to it."""
    return result[0] if isinstance(result, tuple) else result


def template_options() -> dict[str, Any]:
    """``always_freeze_layout`` where templates know it; elsewhere they always do."""
    known = inspect.signature(select_algorithm.TritonTemplate.__init__).parameters
    return {"always_freeze_layout": True} if "always_freeze_layout" in known else {}


def dependent_launch(device: torch.device) -> dict[str, Any]:
    """Options of a template's choice for programmatic dependent launch, and its constant ``PDL``.

    As Inductor's own kernels have it: where ``triton.enable_pdl`` asks for it. One kind of kernel alone gains nothing.
    """
    if config.triton.enable_pdl and dependent.supported(device):
        return {"PDL": True, "triton_meta": {"launch_pdl": True}}
    return {"PDL": False}
