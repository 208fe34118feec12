"""Undocumented API that ``internals/cuda.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._C",
        names=("_tensors_data_ptrs_at_indices_equal",),
        needs="cuda",
        why="Compares the addresses of hundreds of inputs with those of a recording, at every decode step. In Python "
        "this takes longer than the rest of the step's host work.",
        without="No recording is replayed: the second decode step fails with an AttributeError.",
    ),
    Internal(
        module="torch",
        names=("_foreach_copy_",),
        why="Copies the inputs of a recording that change their address: one launch, not one for each.",
        without="Recordings cannot be imported, and with them the backend.",
    ),
    Internal(
        module="torch._C",
        names=("_cuda_clearCublasWorkspaces",),
        needs="cuda",
        why="Workspaces of cuBLAS that are allocated during a recording are in its memory pool, and must neither be "
        "used outside of it nor be freed with it. Inductor's own CUDA graphs do the same.",
        without="Nothing can be recorded: the first decode step fails with an AttributeError.",
    ),
    Internal(
        module="torch._C",
        names=("_cuda_endAllocateToPool",),
        needs="cuda",
        why="After a recording that failed, the allocator of torch 2.11 keeps allocating from its pool: "
        "CUDAGraph.capture_end raises before it tells the allocator.",
        without="After a recording that failed, the call ends with an AttributeError instead of running unrecorded.",
    ),
)
