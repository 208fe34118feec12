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
    "grows_in",
    "is_traceable_wrapper_subclass",
    "make_wrapper",
    "memory_of",
    "never_changes_in",
    "no_torch_function",
    "of_fixed_size",
    "schema_of",
    "tree_leaves",
    "tree_map_only",
    "without_modes",
]

#: ``assert_async(condition, message)`` fails on the device, without waiting for it, where a tensor is False.
assert_async: Any = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]
#: A tensor of a subclass with a shape, a dtype and a device, and no memory.
make_wrapper: Any = torch.Tensor._make_wrapper_subclass


def grows_in(tensor: Any, *dims: int) -> None:
    """For Dynamo: sizes of ``dims`` are symbols from the first graph on, unless the program makes them constants."""
    tensor._dynamo_weak_dynamic_indices = set(dims)


def of_fixed_size(tensor: Any) -> None:
    """Take back :func:`grows_in`."""
    vars(tensor).pop("_dynamo_weak_dynamic_indices", None)


def never_changes_in(tensor: Any, *dims: int) -> None:
    """For Dynamo: the sizes of ``dims`` are numbers in every graph, also with ``dynamic=True``."""
    tensor._dynamo_static_indices = set(dims)


def schema_of(operator: OpOverload) -> torch.FunctionSchema:
    """The schema of an operator: its arguments, their names and defaults, and which of them it writes to."""
    return operator._schema


def memory_of(tensor: torch.Tensor) -> int:
    """A number for the memory behind a tensor, also where it has no address, as under fake tensors."""
    return tensor.untyped_storage()._cdata
