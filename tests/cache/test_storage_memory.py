"""Bytes that caches hold, and the room that they have."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQConfig, InnerQTensor
from innerq_compile.cache.quantizing import storage_bytes
from tests.helpers.cache_models import bytes_needed
from tests.helpers.small_caches import (
    HEAD_DIM,
    HEADS,
    ROLES,
    random_cache,
)

pytestmark = pytest.mark.usefixtures("plain_torch")


@pytest.mark.parametrize("tokens", [1, 129, 1000])
@pytest.mark.parametrize("preset", ["base", "hybrid", "lossless"])
@pytest.mark.parametrize("role", ROLES)
def test_bytes_held_are_the_bytes_of_the_layout(role, preset, tokens):
    config = InnerQConfig.preset(preset)
    tensor = InnerQTensor.from_dense(random_cache(tokens, dtype=torch.float16), config, role=role)
    tensor = torch.cat([tensor, random_cache(9, dtype=torch.float16)], dim=2)
    inner = tensor.inner_tensors()
    shape = (tensor.format, 2, HEADS, HEAD_DIM, torch.float16, inner["codes"].shape[2])
    assert tensor.nbytes_held == storage_bytes(*shape, config)
    assert tensor.nbytes_held == sum(t.untyped_storage().nbytes() for t in inner.values())


@pytest.mark.parametrize(("prompt", "tokens"), [(4096, 4096), (3500, 4096), (32768, 32768)], ids=lambda n: str(n))
def test_memory_of_the_base_preset(prompt, tokens):
    """A cache needs at most 0.26 of the bytes of float16, and allocates at most 1.25 times what it needs."""
    config, dtype, head_dim = InnerQConfig.preset("base"), torch.float16, 128
    needed = held = 0
    for role in ROLES:
        dense = torch.randn(1, 1, tokens, head_dim, dtype=dtype)
        tensor = InnerQTensor.from_dense(dense[:, :, :prompt], config, role=role)
        for first in range(prompt, tokens, 100):
            tensor = torch.cat([tensor, dense[:, :, first : first + 100]], dim=2)
        assert tensor.shape[2] == tokens
        statistics = 2 if role == "key" else 0
        needed += bytes_needed(tensor.format, 1, 1, head_dim, dtype, tokens, statistics=statistics)
        held += tensor.nbytes_held
    assert needed <= 0.26 * 2 * dense.nbytes
    assert held <= 1.25 * needed


@pytest.mark.parametrize("tokens", [4096, 5000, 8192, 32768])
def test_memory_of_a_cache_with_the_same_room(tokens):
    """At most a quarter of a float16 cache as long as this one may get before it grows; of its tokens from 8,192 on."""
    dense = torch.zeros(1, 1, tokens, 128, dtype=torch.float16)
    caches = [InnerQTensor.from_dense(dense, role=role) for role in ROLES]
    held, (room,) = sum(cache.nbytes_held for cache in caches), {cache.room for cache in caches}
    assert room > tokens
    assert held <= 0.25 * 2 * room * 128 * 2
    assert tokens < 8192 or held <= 0.25 * 2 * dense.nbytes


@pytest.mark.parametrize("role", ROLES)
def test_a_cache_grows_behind_its_room(role):
    config = InnerQConfig.preset("base")
    tensor = InnerQTensor.from_dense(random_cache(200), config, role=role)
    room, held = tensor.room, tensor.nbytes_held
    tensor = torch.cat([tensor, random_cache(room - 200)], dim=2)
    assert (tensor.shape[2], tensor.room, tensor.nbytes_held) == (room, room, held)
    tensor = torch.cat([tensor, random_cache(1)], dim=2)
    assert tensor.room > room and tensor.nbytes_held > held


@pytest.mark.parametrize("what", ["room", "nbytes_held"])
def test_a_compiled_program_asks_for_its_memory(what, fresh_dynamo):
    """Both are known only when the compiled program runs."""

    def attend(query, cache):
        return torch.nn.functional.scaled_dot_product_attention(query, cache, cache), getattr(cache, what)

    cache = InnerQTensor.from_dense(random_cache(200), role="key")
    _, found = torch.compile(attend, backend="innerq")(torch.randn(2, HEADS, 1, HEAD_DIM), cache)
    assert found == getattr(cache, what) > 0
