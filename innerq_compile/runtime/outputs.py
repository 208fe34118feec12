"""Rebuilds the outputs of the captured graph from the results of the compiled graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..cache.storage import CacheStorage
from ..cache.tensor import InnerQTensor
from ..passes.context import Appended, Number, OutputPlan, ProgramCache, Quantized
from .sizes import SizeReader


class Outputs:
    """Rebuilds the outputs of the captured graph from results of the rewritten graph, or from arguments.

    Args:
        plans: how each output is rebuilt.
        caches: the quantized caches among the arguments, in order.
        sizes: evaluates symbolic sizes of the captured graph.

    Attributes:
        appended: for each cache, the index of the last output that is this cache with tokens appended, or None.
    """

    def __init__(self, plans: Sequence[OutputPlan], caches: Sequence[ProgramCache], sizes: SizeReader) -> None:
        numbers = {cache: number for number, cache in enumerate(caches)}
        self._count = len(plans)
        self._values: list[tuple[int, int]] = []  # index of the output, index of the result
        self._arguments: list[tuple[int, int]] = []  # index of the output, index of the argument that it is
        self._appended: list[tuple[int, int, int]] = []  # index of the output, index of the cache, tokens_dim
        self._numbers: list[tuple[int, Callable[..., int]]] = []  # index of the output, what computes it
        self._made: dict[int, tuple[list[int], Quantized, Callable[..., int]]] = {}  # by index of the first result
        self.appended: list[int | None] = [None] * len(caches)
        for place, plan in enumerate(plans):
            what, at = plan.what, plan.at
            if isinstance(what, ProgramCache):
                self._arguments.append((place, what.index))
            elif isinstance(what, Appended):
                self._appended.append((place, numbers[what.cache], what.cache.tokens_dim))
                self.appended[numbers[what.cache]] = place
            elif isinstance(what, Number):
                self._numbers.append((place, sizes.reader(what.value)))
            else:
                assert at is not None, "values and new caches are results"
                if what is None:
                    self._values.append((place, at))
                else:
                    self._made.setdefault(at, ([], what, sizes.reader(what.length)))[0].append(place)

    def __call__(
        self, args: tuple[Any, ...], results: Sequence[Any], storages: Sequence[CacheStorage]
    ) -> tuple[list[Any], list[InnerQTensor]]:
        """The outputs, and the new caches among them.

        Args:
            args: the arguments of the call.
            results: the results of the compiled graph.
            storages: the storages of the caches among the arguments, with their new lengths.
        """
        outputs: list[Any] = [None] * self._count
        for place, at in self._values:
            outputs[place] = results[at]
        for place, at in self._arguments:
            outputs[place] = args[at]
        for place, number in self._numbers:
            outputs[place] = number(args)
        for place, number, tokens_dim in self._appended:
            storage = storages[number]
            outputs[place] = InnerQTensor(storage, storage.length - storage.hidden, tokens_dim, storage.hidden)
        caches: list[InnerQTensor] = []
        lock = threading.RLock()  # one for all new caches, because later calls append to all of them
        for at, (places, plan, length) in self._made.items():
            cache = _new_cache(results, at, plan, length(args), lock)
            caches.append(cache)
            for place in places:
                outputs[place] = cache
        return outputs, caches


def _new_cache(
    results: Sequence[torch.Tensor], at: int, plan: Quantized, length: int, lock: threading.RLock
) -> InnerQTensor:
    """The new cache whose inner tensors are the results from index ``at`` on."""
    tensors = plan.tensors.rebuilt(results[at : at + len(plan.tensors.present())])
    storage = CacheStorage(tensors, length, lock=lock)
    return InnerQTensor(storage, length, plan.tokens_dim)
