"""The clock of changes: what makes it tick, and that threads may use it."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch

from innerq_compile import InnerQTensor
from innerq_compile.cache.changes import CHANGES, ChangeClock


class Holder:
    def __init__(self) -> None:
        self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1


def cache(tokens: int = 40) -> InnerQTensor:
    return InnerQTensor.from_dense(torch.randn(1, 1, tokens, 32), "lossless", role="key")


CHANGING = {
    "a new cache": lambda tensor: cache(),
    "a tensor of another length": lambda tensor: tensor[:, :, :30],
    "appending": lambda tensor: torch.cat([tensor, torch.randn(1, 1, 1, 32)], 2),
    "growing": lambda tensor: tensor._storage.resize(tensor._storage.capacity + 1),
    "cutting": lambda tensor: tensor._storage.show(0, 30),
    "counting": lambda tensor: tensor._storage.advance(1),
}


@pytest.mark.parametrize("name", CHANGING)
def test_it_ticks_with_every_change(name):
    tensor = cache()
    before = CHANGES.now
    CHANGING[name](tensor)
    assert CHANGES.now is not before


def test_it_stands_still_while_caches_are_read():
    tensor = cache()
    before = CHANGES.now
    tensor.dequantize(), tensor.inner_tensors(), tensor + 1
    assert CHANGES.now is before


def test_holders_are_told_before_tensors_are_replaced_and_are_not_kept():
    clock, holder = ChangeClock(), Holder()
    clock.add_holder(holder)
    clock.forget_tensors()
    assert holder.forgotten == 1
    gone = weakref.ref(holder)
    del holder
    assert gone() is None
    clock.forget_tensors()


def test_threads_may_add_holders_while_others_have_them_forget():
    clock, kept, errors = ChangeClock(), [], []
    stop = threading.Event()

    def forget() -> None:
        try:
            while not stop.is_set():
                clock.forget_tensors()
                clock.tick()
        except RuntimeError as error:  # a set that changes while it is looked through
            errors.append(error)

    threads = [threading.Thread(target=forget) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        kept.append(Holder())
        clock.add_holder(kept[-1])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    clock.forget_tensors()
    assert all(holder.forgotten for holder in kept)
