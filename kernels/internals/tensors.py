"""What a tensor subclass and its storage need from torch. See ``table/tensors.py``.

Imports neither Dynamo nor Inductor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _disabled_torch_function_impl as no_torch_function
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "META",
    "FakeTensor",
    "assert_async",
    "enable_python_dispatcher",
    "fake_empty",
    "is_traceable_wrapper_subclass",
    "make_wrapper",
    "mark_sizes",
    "memory_of",
    "meta_tensor",
    "no_dispatch",
    "no_torch_function",
    "schema_of",
    "tree_leaves",
    "tree_map_only",
    "without_modes",
]

#: ``assert_async(condition, message)`` fails if the tensor ``condition`` is False; the host does not wait for that.
assert_async: Any = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]
#: Makes a tensor of a subclass, with a shape, dtype and device but no memory.
make_wrapper: Any = torch.Tensor._make_wrapper_subclass


META = torch.device("meta")


class _Meta(torch.Tensor):
    """A meta tensor on its way to become a fake one. No operator sees it."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(function)


def meta_tensor(
    size: Sequence[Any], stride: Sequence[Any], offset: Any, dtype: torch.dtype, nbytes: Any
) -> torch.Tensor:
    """A meta tensor with a storage of ``nbytes``. To be called under ``no_dispatch``.

    An empty tensor that is given sizes or a storage would cost a dozen comparisons where these are symbolic.
    """
    made = make_wrapper(_Meta, size, stride, offset, dtype=dtype, device=META, storage_size=nbytes)
    return made.detach()


def fake_empty(mode: Any, shape: Sequence[Any], dtype: torch.dtype, device: torch.device) -> FakeTensor:
    """A contiguous fake tensor of a fake mode. Quicker than an operator, whose fake results are kept by their sizes."""
    strides: list[Any] = []
    step: Any = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step = step * size if isinstance(size, torch.SymInt) else step * max(size, 1)
    nbytes = 0 if any(isinstance(size, int) and size == 0 for size in shape) else step * dtype.itemsize
    with no_dispatch():
        return FakeTensor(mode, meta_tensor(shape, strides, 0, dtype, nbytes), device)


def mark_sizes(tensor: Any, growing: set[int], fixed: set[int]) -> None:
    """Tell Dynamo how to treat sizes of a tensor.

    Args:
        growing: dimensions whose sizes are symbols from the first graph on, unless the program specializes on them.
        fixed: dimensions whose sizes are constants in every graph, also with ``dynamic=True``.
    """
    tensor._dynamo_weak_dynamic_indices = growing
    tensor._dynamo_static_indices = fixed


def schema_of(operator: OpOverload) -> torch.FunctionSchema:
    """The schema of an operator: names and defaults of its arguments, and which of them it mutates."""
    return operator._schema


def memory_of(tensor: torch.Tensor) -> int:
    """A number that identifies the storage of a tensor. Fake tensors, whose storage has no address, have one too."""
    return tensor.untyped_storage()._cdata
