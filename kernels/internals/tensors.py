"""Private API for tensor subclasses, fake tensors and operator schemas. See ``table/tensors.py``.

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

#: ``assert_async(condition, message)``: an assertion on the device, without synchronization.
assert_async: Any = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]
#: Creates a tensor of a subclass that has a shape, a dtype and a device, but no memory.
make_wrapper: Any = torch.Tensor._make_wrapper_subclass


def mark_sizes(tensor: Any, growing: set[int], fixed: set[int]) -> None:
    """Tell Dynamo how to treat the dimensions of a tensor. Cheap enough for tensors that are created at every step.

    Args:
        growing: dimensions that are symbolic from the first graph on, unless the program specializes them.
        fixed: dimensions that are constants in every graph, even with ``dynamic=True``.
    """
    tensor._dynamo_weak_dynamic_indices = growing
    tensor._dynamo_static_indices = fixed


def unmark_sizes(tensor: Any) -> None:
    """Remove the mark that :func:`mark_sizes` puts on growing dimensions."""
    vars(tensor).pop("_dynamo_weak_dynamic_indices", None)


def schema_of(operator: OpOverload) -> torch.FunctionSchema:
    """The schema of an operator: names, defaults and mutability of its arguments."""
    return operator._schema


def memory_of(tensor: torch.Tensor) -> int:
    """A number that identifies the storage of a tensor, even of a fake tensor, which has no address."""
    return tensor.untyped_storage()._cdata
