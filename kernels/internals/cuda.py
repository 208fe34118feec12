"""What recording CUDA graphs needs in addition to ``torch.cuda.CUDAGraph``. See ``table/cuda.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

#: ``copy_each(targets, sources)`` copies each source to its target, with few kernel launches.
copy_each: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]


#: Whether a capture changes the state of the default generator for the whole process: random numbers on a CUDA device
#: that another thread draws meanwhile are an error then. Later versions have a state for each capture.
CAPTURES_GENERATOR = torch.__version__ < "2.12"


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


def was_drawing(error: RuntimeError) -> bool:
    """Whether a capture has failed because it drew random numbers beside :func:`generator_aside`."""
    return CAPTURES_GENERATOR and "CUDA generator not in capture mode" in str(error)


@contextlib.contextmanager
def generator_aside(device: torch.device) -> Iterator[None]:
    """A context in which the default generator of a CUDA device is at another state.

    A capture that begins in it changes that state. If it draws random numbers later, it fails.
    """
    generator = torch.cuda.default_generators[device.index or 0]
    own = generator.graphsafe_get_state()
    aside = torch.Generator(device)
    aside.seed()  # another thread that draws in this moment must not draw the same numbers each time
    generator.graphsafe_set_state(aside)
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)
