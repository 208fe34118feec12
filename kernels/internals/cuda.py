"""What recording CUDA graphs needs in addition to ``torch.cuda.CUDAGraph``. See ``table/cuda.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: ``copy_each(targets, sources)`` copies each source to its target, with few kernel launches.
copy_each: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]


def same_addresses(inputs: Sequence[Any], addresses: Sequence[Any], places: Sequence[int]) -> bool:
    """Whether ``inputs[i].data_ptr() == addresses[i]`` for all ``i`` in ``places``."""
    return torch._C._tensors_data_ptrs_at_indices_equal(inputs, addresses, places)  # pyright: ignore


def forget_cublas_workspaces() -> None:
    """Free the workspaces of cuBLAS. It allocates new ones when it needs them."""
    torch._C._cuda_clearCublasWorkspaces()


def end_allocation_to_pool(device: int, pool: tuple[int, int]) -> None:
    """Make the allocator stop allocating from ``pool``, the memory pool of a recording.

    Raises:
        RuntimeError: if it was not allocating from it.
    """
    torch._C._cuda_endAllocateToPool(device, pool)
