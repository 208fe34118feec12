"""Runs the prelude of a graph before each call, and keeps its results, such as masks, at fixed addresses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..kernels.formats import CacheFormat
from ..passes.context import Prelude
from .sizes import SizeReader

#: The number of batch sizes for which a graph keeps the buffers of its hoisted inputs.
MAX_BATCH_SIZES = 8


#: The buffers of one thread for the results of the prelude: for the shapes of each batch size, the number of tokens
#: that masks have room for, and a buffer for each result.
Buffers = dict[tuple[tuple[int, ...], ...], tuple[int, list[torch.Tensor]]]


class _OwnBuffers(threading.local):
    """The buffers of each thread, where no recording depends on them."""

    def __init__(self) -> None:
        self.kept: Buffers = {}

    def __call__(self) -> Buffers:
        return self.kept


class HoistedInputs:
    """Runs the prelude of a graph, and keeps its results in buffers that do not move, as a CUDA graph requires.

    Args:
        prelude: the compiled prelude.
        plan: its inputs and results.
        cache: the format of a cache of the graph; all caches have the same capacity.
        original: the graph as captured.
        sizes: evaluates symbolic sizes of ``original``.
        buffers: gives the buffers of the calling thread; by default each has its own.
    """

    def __init__(
        self,
        prelude: Callable[..., Sequence[torch.Tensor]],
        plan: Prelude,
        rooms: list[tuple[int, CacheFormat]],
        original: GraphModule,
        sizes: SizeReader,
        buffers: Callable[[], Buffers] | None = None,
    ) -> None:
        names = [node.name for node in original.graph.find_nodes(op="placeholder")]
        self._rooms = [(index, fmt.block, fmt.window) for index, fmt in rooms]
        self._prelude = prelude
        self._arguments = [names.index(name) for name in plan.inputs]
        self._masks = plan.masks
        self._kinds = [(result.dtype, result.device) for result in plan.results]
        # All sizes except the last one of a mask, which is the capacity. They are constants or batch sizes.
        shapes = [result.shape[: result.dim() - mask] for result, mask in zip(plan.results, plan.masks, strict=True)]
        self._shape_readers = [[sizes.reader(size) for size in shape] for shape in shapes]
        fixed = all(isinstance(size, int) for shape in shapes for size in shape)
        self._fixed_shapes = tuple(map(tuple, shapes)) if fixed else None
        #: indices of the results that the prelude returns
        self._returned = [place for place, write in enumerate(plan.written) if not write]
        #: indices of the results that the prelude writes; for a mask with a function that gives its length in a call
        self._written = [
            (place, sizes.reader(result.shape[-1]) if mask else None)
            for place, (result, mask, write) in enumerate(zip(plan.results, plan.masks, plan.written, strict=True))
            if write
        ]
        self._buffers = buffers or _OwnBuffers()

    def __call__(self, args: tuple[Any, ...], inner: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The hoisted inputs for a call with ``args``, whose caches have these inner tensors."""
        tokens = sum(inner[codes].shape[2] * block + window for codes, block, window in self._rooms)
        buffers = self._buffers_for(args, tokens)
        inputs = [args[index] for index in self._arguments]
        for place, length in self._written:
            inputs.append(buffers[place] if length is None else buffers[place].narrow(-1, 0, length(args)))
        results = self._prelude(*inputs)
        for place, result in zip(self._returned, results, strict=True):
            buffers[place].narrow(-1, 0, result.shape[-1]).copy_(result)
        return buffers

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Let the allocator not reuse this thread's buffers, once freed, before ``stream`` is done with them."""
        for _, buffers in self._buffers().values():
            for buffer in buffers:
                buffer.record_stream(stream)

    def _buffers_for(self, args: tuple[Any, ...], tokens: int) -> list[torch.Tensor]:
        """This thread's buffers for the batch size of a call, with room for ``tokens`` in masks."""
        shapes = self._fixed_shapes
        if shapes is None:
            shapes = tuple(tuple(read(args) for read in shape) for shape in self._shape_readers)
        kept = self._buffers()
        room, buffers = kept.get(shapes, (-1, []))
        if room != tokens:
            buffers = [
                torch.zeros((*shape, tokens), dtype=dtype, device=device)
                if mask
                else torch.empty(shape, dtype=dtype, device=device)
                for (dtype, device), shape, mask in zip(self._kinds, shapes, self._masks, strict=True)
            ]
            kept.pop(shapes, None)
            if len(kept) == MAX_BATCH_SIZES:  # if this batch size comes again, it is recorded again
                del kept[next(iter(kept))]
            kept[shapes] = tokens, buffers
        return buffers
