"""The outputs of a call, created from the results of the compiled graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..cache.storage import CacheStorage
from ..cache.tensor import InnerQTensor
from ..passes.context import Appended, OutputPlan, ProgramCache, Quantized
from .sizes import SizeReader


class Outputs:
    """Creates the outputs of the captured graph from the results of the rewritten one.

    Args:
        plans: For each output, how it is created.
        caches: The quantized caches among the graph's arguments, in order.
        sizes: Evaluates sizes of the captured graph.

    Attributes:
        appended: For each cache, the index of the last output that is this cache with appended tokens, or None.
    """

    def __init__(self, plans: Sequence[OutputPlan], caches: Sequence[ProgramCache], sizes: SizeReader) -> None:
        numbers = {cache: number for number, cache in enumerate(caches)}
        self._count = len(plans)
        self._values: list[tuple[int, int]] = []  # index of the output, and of the result
        self._arguments: list[tuple[int, int]] = []  # index of the output, and of the argument that it is
        self._appended: list[tuple[int, int, int]] = []  # index of the output, and of the cache; its tokens_dim
        #: New caches, by the index of their first inner tensor among the results.
        self._made: dict[int, tuple[list[int], Quantized, Callable[..., int]]] = {}
        self.appended: list[int | None] = [None] * len(caches)
        for place, plan in enumerate(plans):
            what, at = plan.what, plan.at
            if isinstance(what, ProgramCache):
                self._arguments.append((place, what.index))
            elif isinstance(what, Appended):
                self._appended.append((place, numbers[what.cache], what.cache.tokens_dim))
                self.appended[numbers[what.cache]] = place
            else:
                assert at is not None, "it is made of results"
                if what is None:
                    self._values.append((place, at))
                else:
                    self._made.setdefault(at, ([], what, sizes.reader(what.length)))[0].append(place)

    def __call__(
        self, args: tuple[Any, ...], results: Sequence[Any], storages: Sequence[CacheStorage]
    ) -> tuple[list[Any], list[InnerQTensor]]:
        """The outputs of a call, and the new caches among them.

        Args:
            args: The arguments of the call.
            results: The results of the compiled graph.
            storages: The storages of the caches, after :meth:`CallCaches.commit`.
        """
        outputs: list[Any] = [None] * self._count
        for place, at in self._values:
            outputs[place] = results[at]
        for place, at in self._arguments:
            outputs[place] = args[at]
        for place, number, tokens_dim in self._appended:
            storage = storages[number]
            outputs[place] = InnerQTensor(storage, storage.length, tokens_dim)
        caches: list[InnerQTensor] = []
        lock = threading.RLock()  # shared by the new caches, because later calls append to all of them
        for at, (places, plan, length) in self._made.items():
            cache = _new_cache(results, at, plan, length(args), lock)
            caches.append(cache)
            for place in places:
                outputs[place] = cache
        return outputs, caches


def _new_cache(
    results: Sequence[torch.Tensor], at: int, plan: Quantized, length: int, lock: threading.RLock
) -> InnerQTensor:
    """A new cache whose inner tensors are the results from index ``at`` on."""
    tensors = plan.tensors.rebuilt(results[at : at + len(plan.tensors.present())])
    storage = CacheStorage(tensors, length, lock=lock)
    return InnerQTensor(storage, length, plan.tokens_dim)
