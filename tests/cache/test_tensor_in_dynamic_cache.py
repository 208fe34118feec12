"""InnerQTensors in a DynamicCache of transformers, against dense tensors in one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache

from innerq_compile import InnerQTensor
from tests.helpers.small_caches import (
    assert_equal,
    lossless,
    random_cache,
)

pytestmark = pytest.mark.usefixtures("plain_torch")


@pytest.fixture
def dynamic_cache():
    """A DynamicCache of InnerQTensors, and one of the same dense tensors."""
    ours, dense = DynamicCache(), DynamicCache()
    for layer in range(2):
        keys, values = random_cache(60), random_cache(60)
        ours.update(lossless(keys, "key"), lossless(values, "value"), layer)
        dense.update(keys, values, layer)
    return ours, dense


def assert_same_cache(ours: DynamicCache, dense: DynamicCache) -> None:
    assert ours.get_seq_length() == dense.get_seq_length()
    for mine, theirs in zip(ours.layers, dense.layers, strict=True):
        for name in ("keys", "values"):
            assert isinstance(getattr(mine, name), InnerQTensor)
            assert_equal(getattr(mine, name), getattr(theirs, name))


DYNAMIC = {
    "update": lambda cache, new: cache.update(new, -new, 1) and cache.update(new, new, 0),
    "crop": lambda cache, new: cache.crop(-7),
    "crop all": lambda cache, new: cache.crop(-60),
    "reorder_cache": lambda cache, new: cache.reorder_cache(torch.tensor([1, 1])),
    "batch_repeat_interleave": lambda cache, new: cache.batch_repeat_interleave(3),
    "batch_select_indices": lambda cache, new: cache.batch_select_indices(torch.tensor([1])),
    "batch_select_indices(mask)": lambda cache, new: cache.batch_select_indices(torch.tensor([False, True])),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_cache(dynamic_cache, name):
    ours, dense = dynamic_cache
    copied = copy.deepcopy(ours)
    new = random_cache(40)
    for cache in (ours, dense):
        DYNAMIC[name](cache, new)
    assert_same_cache(ours, dense)
    more = random_cache(40, batch=len(dense.layers[0].keys))
    for cache in (ours, dense):
        for layer in range(2):
            cache.update(more, more, layer)
    assert_same_cache(ours, dense)
    assert copied.get_seq_length() == 60 and copied.layers[0].keys._storage is not ours.layers[0].keys._storage


def test_dynamic_cache_copies_are_independent(dynamic_cache):
    ours, dense = dynamic_cache
    copied, loaded = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))
    new = random_cache(40)
    for layer in range(2):
        ours.update(new, new, layer)
    assert_same_cache(copied, dense)
    assert_same_cache(loaded, dense)


def test_dynamic_cache_reset(dynamic_cache):
    ours, dense = dynamic_cache
    keys = random_cache(5)
    for cache in (ours, dense):
        cache.reset()  # drops the tensors, or sets them to zero where transformers is older
    assert ours.get_seq_length() == dense.get_seq_length()
    assert_equal(ours.update(keys, keys, 0)[0], dense.update(keys, keys, 0)[0])
