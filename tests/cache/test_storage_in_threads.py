"""Threads that append to views of one storage at the same time: one writes in place, the others into copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from innerq_compile import InnerQTensor
from innerq_compile.cache.extents import Extents
from innerq_compile.cache.locking import StorageLocks
from tests.helpers.small_caches import assert_equal, lossless, random_cache
from tests.helpers.threads import at_once

THREADS = 4


def appending(past: InnerQTensor, new: torch.Tensor) -> Callable[[], InnerQTensor]:
    return lambda: torch.cat([past, new], dim=2)


@pytest.mark.parametrize("length", [100, 60], ids=["whole", "crop"])
def test_one_appends_in_place_and_the_others_to_copies(length):
    dense = random_cache(100)
    for _ in range(10):
        past = lossless(dense)[:, :, :length]
        news = [random_cache(3) for _ in range(THREADS)]
        longer = at_once(*[appending(past, new) for new in news])
        for cache, new in zip(longer, news, strict=True):
            assert_equal(cache, torch.cat([dense[:, :, :length], new], dim=2))
        assert_equal(past, dense[:, :, :length])
        assert sum(cache._storage is past._storage for cache in longer) == 1


def test_views_that_others_make_meanwhile_are_not_overwritten():
    dense, new = random_cache(100), random_cache(3)

    def views(cache: InnerQTensor) -> list[InnerQTensor]:
        return [cache[:, :, : 100 - count] for count in range(40)]

    for _ in range(5):
        past = lossless(dense)
        short, kept = past[:, :, :60], [past]
        del past
        made = at_once(lambda kept=kept: views(kept.pop()), *[appending(short, new) for _ in range(THREADS - 1)])
        for count, view in enumerate(made[0][:5]):
            assert_equal(view, dense[:, :, : 100 - count])
        for cache in made[1:]:
            assert_equal(cache, torch.cat([dense[:, :, :60], new], dim=2))


def test_copies_and_dense_tensors_are_of_one_moment():
    """Reading a view while another thread appends behind it, which moves its tokens out of the window."""
    dense, new = random_cache(100), random_cache(40)
    for _ in range(15):
        past = lossless(dense)
        longer, copied, read = at_once(appending(past, new), past.clone, past.dequantize)
        assert_equal(longer, torch.cat([dense, new], dim=2))
        assert_equal(copied, dense)
        assert_equal(read, dense)


def test_no_extent_is_lost_that_another_thread_adds():
    extents = Extents()
    kept = at_once(*[lambda: [extents.add(0, length) for length in range(500)] for _ in range(THREADS)])
    longest = kept[-1].pop()
    assert longest.end == 499
    del kept
    assert extents.is_one_behind(498) and not extents.is_one_behind(499)
    assert not extents.is_one_besides(longest)


def test_locks_that_were_not_all_acquired_are_released():
    """Whoever waits for the second of two locks may be interrupted (Ctrl+C); others need the first one."""
    caches = [lossless(random_cache(8)) for _ in range(2)]
    locks = StorageLocks(cache._storage for cache in caches)
    first, second = locks._locks

    class Interrupted:
        def acquire(self):
            raise KeyboardInterrupt

    locks._locks[1] = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        locks.acquire()
    locks._locks[1] = second
    assert at_once(lambda: first.acquire(blocking=False)) == [True]


def test_a_finalizer_may_make_a_tensor_of_the_storage_that_is_looked_at():
    """A garbage collection runs at any allocation, so finalizers run in the middle of everything."""
    cache = lossless(random_cache(100))
    views = [cache[:, :, :length] for length in range(1, 40)]

    class Length(int):
        def __lt__(self, other):  # as a finalizer would, while extents are compared
            views.append(cache[:, :, :50])
            return int(self) < other

    assert cache._storage.extents.is_one_behind(Length(99))
    assert len(views) > 39


def test_extents_can_be_copied():
    extents = copy.deepcopy(pickle.loads(pickle.dumps(Extents())))
    extent = extents.add(0, 3)
    assert extents.is_one_behind(2) and not extents.is_one_besides(extent)
