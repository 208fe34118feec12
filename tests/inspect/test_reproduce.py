"""Inputs of a captured graph, described and built again."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from innerq_compile import PRESETS, InnerQConfig, InnerQError, InnerQTensor, empty_cache
from innerq_compile.inspect import reproduce
from innerq_compile.inspect.reproduce import build, describe_input

ROLES = ("key", "value")


def rebuilt(value):
    """``value`` as a reproducer makes it, from text as in its file."""
    saved: list[torch.Tensor] = []
    description = eval(repr(describe_input(value, value, saved)))
    return build(description, saved)


def assert_alike(made, cache):
    assert type(made) is type(cache)
    assert (made.format, made.shape, made.dtype) == (cache.format, cache.shape, cache.dtype)
    assert made.inner_tensors().keys() == cache.inner_tensors().keys()


@pytest.mark.parametrize("norm", ["channel", "half64", "half32", "interleaved64", "half16@8"])
def test_a_cache_keeps_its_norm(norm):
    """Channels that share a normalization are another program: it is folded into other projections."""
    keys = InnerQTensor.from_dense(torch.randn(2, 2, 200, 64), role="key", norm=norm)
    assert keys.format.norm == norm
    assert_alike(rebuilt(keys), keys)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_cache_of_every_preset(preset, role):
    cache = InnerQTensor.from_dense(torch.randn(2, 2, 200, 64), preset, role=role)
    assert_alike(rebuilt(cache), cache)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_buffer_of_every_preset(preset, role):
    buffer = empty_cache(2, 2, 200, 64, role=role, config=preset)
    buffer[:, :, :70] = torch.randn(2, 2, 70, 64)
    made = rebuilt(buffer)
    assert_alike(made, buffer)
    assert made.dequantize()[:, :, :70].any() and not made.dequantize()[:, :, 70:].any()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("bits", [2, 5, 6, 8])
@pytest.mark.parametrize("scale_dtype", [None, "float16", "bfloat16"])
def test_modes_that_fall_back(bits, scale_dtype):
    config = InnerQConfig(key_bits=bits, value_bits=bits, scale_dtype=scale_dtype)
    for role in ROLES:
        cache = InnerQTensor.from_dense(torch.randn(1, 1, 200, 64, dtype=torch.float16), config, role=role)
        assert_alike(rebuilt(cache), cache)


def test_tokens_in_front_of_heads_and_padding():
    cache = InnerQTensor.from_dense(torch.randn(2, 150, 3, 64), role="key", tokens_dim=1, start=torch.tensor([0, 9]))
    made = rebuilt(cache)
    assert_alike(made, cache)
    assert made.tokens_dim == 1 and not made.dequantize()[1, :9].any() and made.dequantize()[1, 9].any()


def test_a_format_that_cannot_be_made_again(monkeypatch):
    cache = InnerQTensor.from_dense(torch.randn(1, 1, 50, 64), role="key")
    description = describe_input(cache, cache, [])
    other = dataclasses.replace(cache.format, norm="half64")
    monkeypatch.setattr(reproduce.CacheFormat, "parse", lambda spec: other)
    monkeypatch.setattr(InnerQTensor, "from_dense", lambda *args, **kwargs: cache)
    with pytest.raises(InnerQError, match=r"half64 cannot be reproduced.*run the reproducer with the version"):
        build(description, [])
