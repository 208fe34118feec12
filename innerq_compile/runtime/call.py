"""Calling a compiled graph: InnerQTensors apart on the way in, together on the way out."""

from __future__ import annotations

import contextlib
import math
import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from ..cache.buffer import InnerQBuffer
from ..cache.storage import CacheStorage
from ..cache.tensor import InnerQTensor
from ..errors import UnsupportedOperation
from ..kernels.internals.graphs import as_python
from ..passes import PassContext
from ..passes.context import Appended, ProgramCache, Quantized
from .next_call import Caches, NextCall
from .recordings import Recordings
from .report import RUN_OBSERVERS, GraphReport
from .shadow import ShadowReader

#: Batch sizes for which a graph keeps its hoisted inputs where they are.
MOST_BATCHES = 8


class CompiledGraph:
    """A compiled graph with quantized caches, callable with the arguments of the graph that it was made of."""

    def __init__(
        self,
        compiled: Callable[[list[Any], list[int]], Any],
        prelude: Callable[..., Any] | None,
        context: PassContext,
        original: GraphModule,
        rewritten: GraphModule,
        report: GraphReport,
    ) -> None:
        self._report = report
        self._compiled = compiled
        self._begin = compiled.begin if isinstance(compiled, Recordings) else lambda: None
        sizes = _SizeReader(original)
        self._prelude = None if prelude is None else HoistedInputs(prelude, context, original, sizes)
        self._shadows = [
            ShadowReader(plan, original, context.config, sizes.reader) for plan in context.shadows.values()
        ]
        caches = list(context.caches.values())
        names = [node.name for node in original.graph.find_nodes(op="placeholder")]
        kept = [node.name for node in rewritten.graph.find_nodes(op="placeholder")]
        self._dense = _taker([index for index, name in enumerate(names) if name in kept])
        #: the codes of the first cache among the inputs: what is hoisted is as long as it has room
        self._codes = next((kept.index(cache.tensors.codes.name) for cache in context.cache_inputs()), None)
        counts = {appended.cache: appended.count for appended in context.appended.values()}
        position = {cache: index for index, cache in enumerate(caches)}
        #: for each cache: its argument, and how many tokens are appended (None: none)
        self._caches = [(cache.index, sizes.reader(counts[cache]) if cache in counts else None) for cache in caches]
        self._next = None
        fixed = [count for count in counts.values() if isinstance(count, int)]
        if len(fixed) == len(caches) > 1 and not context.shadows:
            self._next = NextCall([cache.index for cache in caches], [counts[cache] for cache in caches])
        self._outputs = []
        for plan in context.outputs:
            what = plan.what
            if what is None:
                self._outputs.append(("value", plan.at))
            elif isinstance(what, ProgramCache):
                self._outputs.append(("same", what.index))
            elif isinstance(what, Appended):
                self._outputs.append(("appended", position[what.cache], what.cache.tokens_dim))
            else:
                self._outputs.append(("new", plan.at, what, sizes.reader(what.length)))

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        stream = self._begin()
        if stream is not None and self._prelude is not None:
            self._prelude.used_on(stream)
        inputs = self._dense(args)
        storages: list[tuple[CacheStorage, int]] = []
        shadows = [reader(args) for reader in self._shadows]
        caches = self._next.known(args) if self._next is not None else None
        if caches is None:  # Dynamo has checked their kind
            storages = self._writable(args)
            sides = [side for shadow in shadows for side in (shadow.key, shadow.value)]
            caches = Caches.of([*(storage for storage, _ in storages), *sides])
        inputs += caches.inner
        if self._prelude is not None:
            inputs += self._prelude(args, blocks=inputs[self._codes].shape[2])
        try:
            results = self._compiled(inputs, caches.places)
            storages = storages or self._appended_to(args)
            for reader, shadow in zip(self._shadows, shadows, strict=True):
                reader.followed(args, shadow)
            for storage, count in storages:
                if count:
                    storage.advance(count)
        except BaseException:  # no memory, or the user has enough
            _take_back(storages or self._appended_to(args))
            raise
        made: dict[int, InnerQTensor] = {}
        outputs = []
        for plan in self._outputs:
            kind, at = plan[0], plan[1]
            if kind == "value":
                outputs.append(results[at])
            elif kind == "same":
                outputs.append(args[at])
            elif kind == "appended":
                storage = storages[at][0]
                outputs.append(InnerQTensor(storage, storage.length, plan[2]))
            else:
                if at not in made:
                    made[at] = _new_cache(results, at, plan[2], plan[3](args))
                outputs.append(made[at])
        if self._next is not None:
            self._expect(outputs)
        if RUN_OBSERVERS.opened:
            storages += [(side, 0) for shadow in shadows for side in (shadow.key, shadow.value)]
            storages += [(tensor._storage, 0) for tensor in made.values()]
        self._report.has_run([storage for storage, _ in storages])
        return tuple(outputs)

    def _writable(self, args: tuple[Any, ...]) -> list[tuple[CacheStorage, int]]:
        """The storage of each cache, fit to be written to, and how many tokens will be appended to it."""
        storages = []
        shared = len({id(args[index]._storage) for index, _ in self._caches}) != len(self._caches)
        for index, count in self._caches:
            tensor = args[index]
            storage = tensor._storage
            if shared and isinstance(tensor, InnerQBuffer):
                raise UnsupportedOperation(
                    f"two arguments of a compiled function share one quantized cache, and one of them is a buffer of "
                    f"shape {tuple(tensor.shape)}: pass it once, or pass .clone()"
                )
            if shared:  # two of the inputs are views of one storage, and none may see what another appends
                storage = storage.copy()
            if count is None:
                storage = _readable(storage, tensor.shape[tensor.tokens_dim])
                storages.append((storage, 0))
            else:
                count = count(args)
                storage = storage.writable_from(tensor._view, count)
                storages.append((storage, count))
        if shared:
            _grow_alike([args[index]._storage for index, _ in self._caches], [storage for storage, _ in storages])
        return storages

    def _appended_to(self, args: tuple[Any, ...]) -> list[tuple[CacheStorage, int]]:
        """What `_writable` would give for caches that are known to be fit."""
        return [(args[index]._storage, 0 if count is None else count(args)) for index, count in self._caches]

    def _expect(self, outputs: list[Any]) -> None:
        """Tell the next call of the caches that this one gives back."""
        made = {plan[1]: output for plan, output in zip(self._outputs, outputs, strict=True) if plan[0] == "appended"}
        if len(made) == len(self._caches):
            self._next.expect([made[at] for at in range(len(made))])


def _take_back(storages: list[tuple[CacheStorage, int]]) -> None:
    """Bring lengths on the device back to those on the host after a call that got nowhere: it may have appended."""
    for storage, count in storages:
        if count:
            # where the device takes no kernel any more, what happened before says why
            with contextlib.suppress(RuntimeError):
                storage.truncate(storage.length)


def _taker(indices: list[int]) -> Callable[[tuple[Any, ...]], list[Any]]:
    """A function that takes the arguments at ``indices``: hundreds of them, every step."""
    if len(indices) < 2:
        return lambda args: [args[index] for index in indices]
    take = operator.itemgetter(*indices)
    return lambda args: list(take(args))


def _grow_alike(originals: list[CacheStorage], copies: list[CacheStorage]) -> None:
    """Keep capacities of copies of one storage equal: Dynamo saw one tensor of blocks, so that they are one symbol."""
    for original in {id(original): original for original in originals}.values():
        alike = [copy for copy, its in zip(copies, originals, strict=True) if its is original]
        capacity = max(copy.capacity for copy in alike)
        for copy in alike:
            copy.resize(capacity)


def _readable(storage: CacheStorage, length: int) -> CacheStorage:
    """A storage whose device-side length is ``length``, for a graph that reads a cache without appending."""
    if storage.length == length:
        return storage
    copy = storage.copy()
    copy.truncate(length)
    return copy


def _new_cache(results, at: int, plan: Quantized, length: int) -> InnerQTensor:
    tensors = plan.tensors.rebuilt(results[at : at + len(plan.tensors.present())])
    storage = CacheStorage.adopt(plan.format, tensors.encoded, tensors.mean, tensors.norm, length)
    return InnerQTensor(storage, length, plan.tokens_dim)


class _Made(threading.local):
    """A thread's results of a prelude.

    Attributes:
        by_shapes: by the shapes of a batch size, the tokens that masks have room for, and a buffer for each result.
    """

    def __init__(self) -> None:
        self.by_shapes: dict[tuple[tuple[int, ...], ...], tuple[int, list[torch.Tensor]]] = {}


class HoistedInputs:
    """Runs the prelude of a graph, and keeps its results where a CUDA graph finds them."""

    def __init__(
        self, prelude: Callable[..., Any], context: PassContext, original: GraphModule, sizes: _SizeReader
    ) -> None:
        names = [node.name for node in original.graph.find_nodes(op="placeholder")]
        fmt = next(context.cache_inputs()).format
        self._block, self._window = fmt.block, fmt.window
        self._prelude = prelude
        self._indices = [names.index(name) for name in context.prelude.inputs]
        self._masks, self._written = context.prelude.masks, context.prelude.written
        self._kinds = [(result.dtype, result.device) for result in context.prelude.results]
        #: of each result the sizes from the arguments of a call, without the last of a mask: numbers, and batch sizes
        leads = [
            result.shape[: result.dim() - mask]
            for result, mask in zip(context.prelude.results, self._masks, strict=True)
        ]
        self._leads = [[sizes.reader(size) for size in lead] for lead in leads]
        fixed = all(isinstance(size, int) for lead in leads for size in lead)
        self._shapes = tuple(map(tuple, leads)) if fixed else None
        self._returned = [place for place, write in enumerate(self._written) if not write]
        #: of each mask that is written how long its last dimension is, from the arguments of a call
        self._lengths = [
            sizes.reader(result.shape[-1]) if mask and write else None
            for result, mask, write in zip(context.prelude.results, self._masks, self._written, strict=True)
        ]
        self._made = _Made()

    def __call__(self, args: tuple[Any, ...], blocks: int) -> list[torch.Tensor]:
        """The hoisted inputs for a call with ``args``, whose caches have room for so many ``blocks``."""
        buffers = self._buffers(args, blocks * self._block + self._window)
        inputs = [args[index] for index in self._indices]
        for buffer, mask, write, length in zip(buffers, self._masks, self._written, self._lengths, strict=True):
            if write:
                inputs.append(buffer.narrow(-1, 0, length(args)) if mask else buffer)
        results = self._prelude(*inputs)
        for place, result in zip(self._returned, results, strict=True):
            buffers[place].narrow(-1, 0, result.shape[-1]).copy_(result)
        return buffers

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Keep this thread's results, once they are let go, from everybody until ``stream`` is done with them."""
        for _, buffers in self._made.by_shapes.values():
            for buffer in buffers:
                buffer.record_stream(stream)

    def _buffers(self, args: tuple[Any, ...], tokens: int) -> list[torch.Tensor]:
        shapes = self._shapes
        if shapes is None:
            shapes = tuple(tuple(read(args) for read in lead) for lead in self._leads)
        kept = self._made.by_shapes
        room, buffers = kept.get(shapes, (-1, []))
        if room != tokens:
            buffers = [
                torch.zeros((*shape, tokens), dtype=dtype, device=device)
                if mask
                else torch.empty(shape, dtype=dtype, device=device)
                for (dtype, device), shape, mask in zip(self._kinds, shapes, self._masks, strict=True)
            ]
            kept.pop(shapes, None)
            if len(kept) == MOST_BATCHES:  # one that comes back is recorded anew
                del kept[next(iter(kept))]
            kept[shapes] = tokens, buffers
        return buffers


class _SizeReader:
    """Evaluates symbolic sizes of a graph from the arguments of a call."""

    def __init__(self, original: GraphModule) -> None:
        self._places: dict[Any, tuple[int, int | None]] = {}  # symbol -> (argument, dimension or None for an int)
        for index, node in enumerate(original.graph.find_nodes(op="placeholder")):
            value = node.meta.get("example_value")
            if isinstance(value, torch.SymInt):
                self._note(value, index, None)
            elif isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    self._note(size, index, dim)

    def _note(self, size: Any, index: int, dim: int | None) -> None:
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
            self._places.setdefault(size.node.expr, (index, dim))

    def reader(self, size: Any) -> Callable[[tuple[Any, ...]], int]:
        """A function of the call's arguments that gives ``size``.

        Raises:
            KeyError: if the size depends on a symbol that no argument carries.
        """
        if not isinstance(size, torch.SymInt) or size.node.expr.is_number:
            constant = int(size)
            return lambda args: constant
        expr = size.node.expr
        places = {symbol: self._places[symbol] for symbol in expr.free_symbols}
        if expr.is_Symbol:
            index, dim = places[expr]
            return lambda args: args[index] if dim is None else args[index].shape[dim]

        # as Python's own arithmetic: sympy takes a tenth of a millisecond, every step
        evaluate = eval(f"lambda {', '.join(map(str, places))}: {as_python(expr)}", {"math": math})
        reads = list(places.values())
        return lambda args: evaluate(*[args[i] if d is None else args[i].shape[d] for i, d in reads])
