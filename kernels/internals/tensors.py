"""What a tensor subclass and its storage need of torch. See ``table/tensors.py``.

Imports neither Dynamo nor Inductor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C import _disabled_torch_function_impl as no_torch_function
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "FakeTensor",
    "assert_async",
    "is_traceable_wrapper_subclass",
    "make_wrapper",
    "mark_sizes",
    "memory_of",
    "no_torch_function",
    "schema_of",
    "tree_leaves",
    "tree_map_only",
    "unmark_sizes",
    "without_modes",
]

#: ``assert_async(condition, message)`` fails on the device, without waiting for it, where a tensor is False.
assert_async: Any = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]
#: A tensor of a subclass with a shape, a dtype and a device, and no memory.
make_wrapper: Any = torch.Tensor._make_wrapper_subclass


def mark_sizes(tensor: Any, growing: set[int], fixed: set[int]) -> None:
    """For Dynamo, of a tensor that is made at every step: what to make of the sizes of these dimensions.

    Args:
        growing: they are symbols from the first graph on, unless the program makes them constants.
        fixed: they are numbers in every graph, also with ``dynamic=True``.
    """
    tensor._dynamo_weak_dynamic_indices = growing
    tensor._dynamo_static_indices = fixed


def unmark_sizes(tensor: Any) -> None:
    """Take back what :func:`mark_sizes` said of growing dimensions."""
    vars(tensor).pop("_dynamo_weak_dynamic_indices", None)


def schema_of(operator: OpOverload) -> torch.FunctionSchema:
    """The schema of an operator: its arguments, their names and defaults, and which of them it writes to."""
    return operator._schema


def memory_of(tensor: torch.Tensor) -> int:
    """A number for the memory behind a tensor, also where it has no address, as under fake tensors."""
    return tensor.untyped_storage()._cdata
