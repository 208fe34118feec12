"""Caches of any head_dim: the program sees its own, whatever is done to a cache."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerq_compile import InnerQConfig, InnerQTensor, empty_cache
from innerq_compile.cache.quantizing import storage_bytes
from innerq_compile.kernels.formats import MAX_HEAD_DIM
from innerq_compile.kernels.pairs import Pairs
from tests.helpers.small_caches import ROLES, SMALL_WINDOWS, assert_equal, random_cache
from tests.helpers.triton_cases import rms_ratio

pytestmark = pytest.mark.usefixtures("plain_torch")

HEAD_DIMS = (1, 36, 40, 100, 120, 464, 512, MAX_HEAD_DIM)
head_dims = st.one_of(st.sampled_from(HEAD_DIMS), st.integers(1, MAX_HEAD_DIM))


@settings(max_examples=25)
@given(head_dims, st.sampled_from(ROLES), st.sampled_from([1, 2]), st.integers(0, 70), st.integers(1, 60), st.data())
def test_a_lossless_cache_is_the_dense_one(head_dim, role, tokens_dim, prompt, count, data):
    dense = random_cache(prompt + 2 * count, head_dim=head_dim)
    plain = dense if tokens_dim == 2 else dense.transpose(1, 2).contiguous()
    config = InnerQConfig.preset("lossless", **SMALL_WINDOWS)

    def part(first, end):
        return plain.narrow(tokens_dim, first, end - first)

    cache = InnerQTensor.from_dense(part(0, prompt), config, role=role, tokens_dim=tokens_dim)
    assert cache.shape == part(0, prompt).shape
    cache = torch.cat([cache, part(prompt, prompt + count)], dim=tokens_dim)
    assert_equal(cache, part(0, prompt + count))
    assert cache.dequantize().is_contiguous()
    kept = data.draw(st.integers(0, prompt + count))
    cache = torch.cat([cache.narrow(tokens_dim, 0, kept), part(kept, prompt + 2 * count)], dim=tokens_dim)
    cache = pickle.loads(pickle.dumps(cache)).index_select(0, torch.tensor([1, 0, 1]))
    assert isinstance(cache, InnerQTensor)
    assert_equal(cache, plain[[1, 0, 1]])
    assert_equal(cache.to(torch.float16).float(), plain[[1, 0, 1]].half().float())
    assert_equal(cache.abs(), plain[[1, 0, 1]].abs())


@settings(max_examples=20)
@given(head_dims, st.sampled_from(ROLES), st.sampled_from(["base", "small", "int4", "paper_base"]))
def test_a_quantized_cache_holds_its_windows_and_is_close_elsewhere(head_dim, role, preset):
    torch.manual_seed(0)
    dense = random_cache(110, head_dim=head_dim)
    cache = InnerQTensor.from_dense(dense[:, :, :80], InnerQConfig.preset(preset, **SMALL_WINDOWS), role=role)
    for i in range(80, 110):
        cache = torch.cat([cache, dense[:, :, i : i + 1]], dim=2)
    assert cache.shape == dense.shape
    read = cache.dequantize()
    exact = 0.0 if cache.inner_tensors().get("norm") is None else 1e-4  # others are rounded as they are normalized
    assert_equal(read[:, :, :4], dense[:, :, :4], atol=exact)
    assert_equal(read[:, :, -8:], dense[:, :, -8:], atol=exact)
    assert rms_ratio(read, dense) < 0.5
    assert_equal(cache.clone()[:, :, :90], cache[:, :, :90].dequantize())


@pytest.mark.parametrize("head_dim", [36, 100])
def test_zeros_cost_little_accuracy(head_dim):
    """Keys of a head_dim that is held as it is have about the same error."""
    errors = []
    for width in (head_dim, 128):
        torch.manual_seed(0)
        dense = random_cache(500, heads=4, head_dim=128)[..., :width]
        cache = InnerQTensor.from_dense(dense, "base", role="key", queries=torch.randn(2, 4, 500, width))
        errors.append(rms_ratio(cache[:, :, 32:400].dequantize(), dense[:, :, 32:400]))
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("norm", ["half100", "interleaved100", "half36@64"])
def test_channels_of_a_pair_share_their_normalization(norm):
    cache = InnerQTensor.from_dense(random_cache(90, head_dim=100), "base", role="key", norm=norm)
    assert cache.format.norm == norm and cache.format.zeros == 28
    factors = cache.inner_tensors()["norm"]
    partners = list(Pairs.parse(norm).partners(100))
    assert torch.equal(factors[..., :100], factors[..., partners]) and not (factors == factors[..., :1]).all()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("head_dim", [36, 100, 512])
def test_a_preallocated_cache(role, head_dim):
    dense = random_cache(60, head_dim=head_dim)
    config = InnerQConfig.preset("lossless", **SMALL_WINDOWS)
    buffer = empty_cache(2, dense.shape[1], 80, head_dim, role=role, config=config)
    assert buffer.shape == (2, dense.shape[1], 80, head_dim) and not buffer.dequantize().any()
    buffer[:, :, :50] = dense[:, :, :50]
    buffer.index_copy_(2, torch.arange(50, 60), dense[:, :, 50:])
    assert_equal(buffer[:, :, :60], dense, atol=1e-5)
    assert not buffer[:, :, 60:].dequantize().any()
    buffer[:, :, :70].zero_()
    assert not buffer.dequantize().any()


def test_sequences_that_are_made_anew_keep_their_zeros():
    """What is read of a block behind the program's channels does not come back as numbers."""
    dense = random_cache(100, head_dim=100)
    config = InnerQConfig.preset("base", **SMALL_WINDOWS, centre_keys=False)
    cache = InnerQTensor.from_dense(dense, config, role="key")
    made = cache._storage.made_anew(10, 100)
    assert (made.head_dim, made.length) == (100, 90)
    assert not made.tensors.window[..., 100:].any()
    assert rms_ratio(made.dequantize(90), cache[:, :, 10:].dequantize()) < 0.2


def test_its_bytes_are_known():
    config = InnerQConfig.preset("base", **SMALL_WINDOWS)
    cache = InnerQTensor.from_dense(random_cache(100, head_dim=100), config, role="key")
    capacity = cache.inner_tensors()["codes"].shape[2]
    assert cache.nbytes_held == storage_bytes(cache.format, 2, 2, 100, torch.float32, capacity, config)
