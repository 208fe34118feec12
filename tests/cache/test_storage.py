"""Storages and traced caches: whatever inner tensors there are goes along, and a traced cache holds no data."""

from __future__ import annotations

import pickle

import pytest
import torch

from innerq_compile import InnerQError, InnerQTensor, empty_cache
from innerq_compile.cache.storage import CacheStorage
from innerq_compile.cache.traced import TracedCache, is_traced
from innerq_compile.kernels.cache import INNER_TENSORS


def storage_with_every_tensor() -> CacheStorage:
    return InnerQTensor.from_dense(torch.randn(2, 2, 200, 32), "base", role="key")._storage


COPIES = {
    "copy": lambda storage: storage.copy(),
    "pickle": lambda storage: pickle.loads(pickle.dumps(storage)),
    "converted": lambda storage: storage.converted(None, "cpu"),
}


@pytest.mark.parametrize("name", COPIES)
def test_every_inner_tensor_is_copied(name):
    storage = storage_with_every_tensor()
    copied = COPIES[name](storage)
    assert [*copied.tensors.present()] == [*INNER_TENSORS]
    assert [*map(id, copied.inputs)] == [*map(id, copied.tensors)] and copied.flat is storage.flat
    for old, new in zip(storage.tensors, copied.tensors, strict=True):
        assert torch.equal(old, new) and old.data_ptr() != new.data_ptr()


def test_another_dtype_is_one_of_the_windows_alone():
    storage = storage_with_every_tensor()
    half = storage.converted(torch.float16, None)
    assert half.dtype == torch.float16
    changed = [n for n, tensor in half.tensors.present().items() if tensor.dtype != getattr(storage.tensors, n).dtype]
    assert changed == ["window"]


def test_growing_keeps_all_but_what_has_a_place_for_each_block():
    storage = storage_with_every_tensor()
    before, blocks = storage.tensors, storage.blocks
    storage.resize(storage.capacity + 3)
    replaced = [name for name in INNER_TENSORS if getattr(storage.tensors, name) is not getattr(before, name)]
    assert replaced == ["codes", "scales"] and storage.blocks is blocks and blocks.shape == (storage.capacity,)
    assert torch.equal(storage.tensors.codes[:, :, : before.codes.shape[2]], before.codes)


@pytest.mark.parametrize("tokens_dim", [1, 2])
@pytest.mark.parametrize("role", ["key", "value"])
def test_a_traced_cache_has_the_type_of_the_cache(role, tokens_dim):
    shape = (2, 3, 50, 32) if tokens_dim == 2 else (2, 50, 3, 32)
    cache = InnerQTensor.from_dense(torch.randn(shape), "base", role=role, tokens_dim=tokens_dim)
    names, context = cache.__tensor_flatten__()
    inner = {name: getattr(cache, name) for name in names}
    twin = InnerQTensor.__tensor_unflatten__(inner, context, cache.shape, cache.stride())
    traced = twin._storage
    assert isinstance(traced, TracedCache) and is_traced(twin) and not is_traced(cache)
    assert (twin.shape, twin.dtype, twin.device) == (cache.shape, cache.dtype, cache.device)
    assert (traced.batch, traced.heads, traced.length, traced.capacity) == (2, 3, 50, cache._storage.capacity)
    assert set(traced.statistics) == {*cache.inner_tensors()} & {"mean", "norm", "query_profile"}
    assert twin.__tensor_flatten__()[1] is context


@pytest.mark.parametrize("ask", ["dequantize", "room", "nbytes_held", "inner_tensors", "add"])
@pytest.mark.parametrize("buffer", [False, True], ids=["cache", "buffer"])
def test_data_of_a_traced_cache_is_refused(ask, buffer):
    cache = (
        empty_cache(1, 2, 50, 32, role="key")
        if buffer
        else InnerQTensor.from_dense(torch.ones(1, 2, 50, 32), role="key")
    )
    names, context = cache.__tensor_flatten__()
    inner = {name: getattr(cache, name) for name in names}
    twin = type(cache).__tensor_unflatten__(inner, context, cache.shape, cache.stride())
    with pytest.raises(InnerQError, match="backend='innerq'"):
        value = twin + 1 if ask == "add" else getattr(twin, ask)
        value()
