"""What recordings of CUDA graphs need beside ``torch.cuda.CUDAGraph``. See ``table/cuda.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: ``copy_each(targets, sources)`` copies every source to its target, in few launches.
copy_each: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]


def same_addresses(inputs: Sequence[Any], addresses: Sequence[Any], places: Sequence[int]) -> bool:
    """Whether the tensors at ``places`` of ``inputs`` have the ``addresses`` at those places."""
    return torch._C._tensors_data_ptrs_at_indices_equal(inputs, addresses, places)  # pyright: ignore


def forget_cublas_workspaces() -> None:
    """Let go of the memory that cuBLAS works in; it takes new memory when it needs some."""
    torch._C._cuda_clearCublasWorkspaces()


def end_allocation_to_pool(device: int, pool: tuple[int, int]) -> None:
    """Tell the allocator that nobody records into ``pool`` any more.

    Raises:
        RuntimeError: if nobody did.
    """
    torch._C._cuda_endAllocateToPool(device, pool)
