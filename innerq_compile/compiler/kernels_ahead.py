"""Lets Triton compile the kernels of operators while Inductor compiles the rest of a graph.

Inductor compiles the kernels that it generates in other processes. Those of an operator that it only calls are compiled
by Triton when the operator is first called, which takes ten seconds for the two sides of a prompt's cache. So each kind
of call is made once in another thread, with small tensors like its own, as soon as the passes have run. Triton's
compilers release Python's global lock. With the kernels on disk a thread only loads them.

The first prompt also compiles the kernel by which the steps after it append to the cache, and does not wait for it: the
next graph does, which is that of the steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..kernels import dispatch, ops, triton  # noqa: F401  (the operators are registered by their import)
from ..kernels.backend import KernelBackend
from ..kernels.cache import Cache, CacheTensors
from ..kernels.formats import CacheFormat
from ..kernels.internals import inductor
from ..kernels.internals.graphs import size_with
from ..kernels.schemas import arguments_of
from ..passes.graph.reading import read
from ..passes.graph.values import example, tensor_of
from ..runtime.recordings import at_work

log = logging.getLogger(__name__)

#: Operators of a prompt that Inductor calls and does not lower, and whose kernels therefore Triton compiles.
_CALLED = ("innerq::key_statistics", "innerq::prefill")

#: What each symbol of a size is replaced by: kernels do not depend on it.
_SMALL = 16
#: A call is left to the graph if a tensor of it has more elements, because its sizes are constants.
_MAX_ELEMENTS = 1 << 25

_THREADS = min(4, os.cpu_count() or 1)


#: What the next graph waits for.
_AHEAD: list[Future[Any]] = []
os.register_at_fork(after_in_child=_AHEAD.clear)  # the threads are not in a forked process


class Kernels:
    """Kernels that are being compiled for the operators of a graph."""

    def __init__(self) -> None:
        self.needed: list[Future[Any]] = []

    def not_yet(self) -> list[Future[Any]]:
        """What ends when they are compiled. Not this graph waits for it, but the next one."""
        later, self.needed = self.needed, []
        _AHEAD.extend(later)
        return later


@contextlib.contextmanager
def compiling_kernels(gm: GraphModule) -> Iterator[Kernels]:
    """Context in which the kernels of the operators of a graph are compiled. It ends when they are."""
    ahead, kernels = list(_AHEAD), Kernels()
    _AHEAD.clear()
    calls = list(_calls(gm))
    if calls:
        inductor.set_triton_folder()  # before the first kernel is compiled, so that all of them are found in one place
        pool = ThreadPoolExecutor(_THREADS, "innerq-kernels")
        kernels.needed = [pool.submit(_quietly, function) for function in calls]
        made: dict[str, Future[Cache | None]] = {}
        for function, future in zip(calls, kernels.needed, strict=True):
            if isinstance(function, _Prefill):
                made.setdefault(function.format.role, future)
        if len(made) == 2:
            _AHEAD.append(pool.submit(_quietly, lambda: _append(made["key"].result(), made["value"].result())))
        pool.shutdown(wait=False)  # which does what it was given
    try:
        yield kernels
    finally:
        wait([*ahead, *kernels.needed])


def _quietly(function: Callable[[], Any]) -> Any:
    """The result of a function, or None if it fails: then the call in the graph compiles the kernel, or fails."""
    try:
        with torch.no_grad():
            return function()
    except Exception as error:
        log.debug("a kernel is not compiled ahead: %r", error, exc_info=True)
        return None


def _calls(gm: GraphModule) -> Iterator[_Call]:
    """The different calls of operators on a GPU for which Triton's kernels are used."""
    known: set[Any] = set()
    for node in gm.graph.nodes:
        call = read(node)
        if call is None or call.name not in _CALLED:
            continue
        try:
            arguments = tuple(_small(argument) for argument in node.args)
        except Exception as error:  # sizes may be any expressions
            log.debug("the kernel of %s is not compiled ahead: %r", node, error)
            continue
        tensors = [argument for argument in arguments if isinstance(argument, _Tensor)]
        if arguments in known or any(one.device.type != "cuda" or one.elements > _MAX_ELEMENTS for one in tensors):
            continue
        known.add(arguments)
        kind = _Prefill if call.name == "innerq::prefill" else _Statistics
        yield kind(node.target, arguments, tensors[0].device)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A small tensor like one of a graph."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def elements(self) -> int:
        """The number of elements that its memory has room for."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    def made(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device).zero_()


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of an operator with small tensors."""

    operator: Any
    arguments: tuple[Any, ...]
    device: torch.device

    def __call__(self) -> Any:
        """Make the call, unless a kernel other than Triton's would serve it: that may take long, or refuse it."""
        with _own_stream(self.device):
            arguments = [one.made() if isinstance(one, _Tensor) else one for one in self.arguments]
            backend = dispatch.choose(self.device, lambda one: self._supported_by(one, arguments[0]))
            return self._result(arguments) if backend is triton else None

    def _supported_by(self, backend: KernelBackend, x: torch.Tensor) -> bool:
        raise NotImplementedError

    def _result(self, arguments: list[Any]) -> Any:
        return self.operator(*arguments)


class _Statistics(_Call):
    """A call that measures the keys of a prompt."""

    def _supported_by(self, backend: KernelBackend, x: torch.Tensor) -> bool:
        return backend.supports_key_statistics(x)


class _Prefill(_Call):
    """A call that makes one side of a cache. Its result is that side."""

    @property
    def format(self) -> CacheFormat:
        """The format of the side."""
        return CacheFormat.parse(self.arguments[5])

    def _supported_by(self, backend: KernelBackend, x: torch.Tensor) -> bool:
        return backend.supports_prefill(self.format, x) and backend.supports_append(self.format, x)

    def _result(self, arguments: list[Any]) -> Cache:
        cache = CacheTensors.of_encoded(self.format, super()._result(arguments))
        return dataclasses.replace(cache, query_profile=arguments[6] if len(arguments) > 6 else None)


def _append(keys: Cache | None, values: Cache | None) -> None:
    """Append one token, as a decode step does. The compilation that began it may have ended."""
    if keys is None or values is None:
        return
    with at_work(), _own_stream(keys.state.device):
        new = (side.window.new_zeros((*side.window.shape[:2], 1, side.window.shape[3])) for side in (keys, values))
        torch.ops.innerq.append_.default(*arguments_of("append_", keys, values, *new))


@contextlib.contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Context of a stream of this thread, whose kernels are done at the end: memory may be used by others then."""
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
        torch.cuda.current_stream(device).synchronize()


def _without_nothing(node: Node) -> Node:
    """What a node is once Inductor has left out joining it to nothing, as an empty cache does: it has other strides."""
    call = read(node)
    tensors = call["tensors"] if call is not None and call.name == "cat" else None
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(one, Node) for one in tensors):
        return node
    some = [one for one in tensors if (value := tensor_of(one)) is None or tuple(value.shape) != (0,)]
    return _without_nothing(some[0]) if len(some) == 1 else node


def _small(value: Any) -> Any:
    """An argument of a node, with small sizes in place of symbols. Equal arguments need the same kernels."""
    if isinstance(value, Node):
        value = example(_without_nothing(value))
    if isinstance(value, torch.Tensor):
        shape, strides = (tuple(size_with(size, _SMALL) for size in sizes) for sizes in (value.shape, value.stride()))
        return _Tensor(shape, strides, value.dtype, value.device)
    if isinstance(value, torch.SymInt):
        return size_with(value, _SMALL)
    return value
