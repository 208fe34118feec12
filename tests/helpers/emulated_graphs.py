"""An emulation of CUDA graphs on a CPU: operators are recorded with their tensors, and run again on the same memory.

As on a GPU, nothing is computed while a graph is recorded, and a replay reads and writes the recorded addresses.
Operators that wait for the device (``item``) cannot be recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from innerq_compile.kernels.internals import cuda
from innerq_compile.passes.analysis import recordable

_CPU = torch.device("cpu")


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple, dict, list[torch.Tensor]]] = []
        self.noting: _Noting | None = None

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local", "other threads may use the device meanwhile"
        self.noting = _Noting(self)
        self.noting.__enter__()

    def capture_end(self) -> None:
        assert self.noting is not None
        self.noting.__exit__(None, None, None)
        for storage, content in self.noting.before.values():
            storage.copy_(content)

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, outs in self.calls:
            for new, out in zip(_tensors(func(*args, **kwargs)), outs, strict=True):
                if new.data_ptr() != out.data_ptr():
                    out.copy_(new)


class _Noting(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.supports_higher_order_operators = True
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = {out.untyped_storage()._cdata for *_, outs in self.graph.calls for out in outs}
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage._cdata not in made and storage._cdata not in self.before:
                self.before[storage._cdata] = storage, storage.clone()
        result = func(*args, **kwargs)
        self.graph.calls.append((func, args, kwargs, _tensors(result)))
        return result


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Stream:
    """Stands for a stream; notes which ones it waited for, and the addresses of tensors that are kept for it."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.waited: list[Stream] = []
        self.keeps: list[int] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)


def _at(tensors: list[Any], addresses: list[int | None], places: list[int]) -> bool:
    """Set a function of torch that only CUDA builds have."""
    return all(tensors[place].data_ptr() == addresses[place] for place in places)


@pytest.fixture
def emulated() -> Iterator[Stream]:
    """Recording works without a GPU. Gives the current stream."""
    with emulation() as stream:
        yield stream


@contextlib.contextmanager
def emulation() -> Iterator[Stream]:
    """Within the block, recording works without a GPU. Gives the current stream."""
    stream = Stream()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordable, "DEVICE", "cpu")
        for name, stand_in in {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "device": lambda device: contextlib.nullcontext(),
            "current_stream": lambda device=None: stream,
            "set_stream": lambda stream: None,
            "stream": lambda stream: contextlib.nullcontext(),
            "empty_cache": lambda: None,
            "graph_pool_handle": object,
            "is_current_stream_capturing": lambda: False,
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(cuda, "CAPTURES_GENERATOR", False)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.keeps.append(tensor.data_ptr()))
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: None, raising=False)
        patch.setattr(torch._C, "_tensors_data_ptrs_at_indices_equal", _at, raising=False)
        yield stream
