"""The reference's caches: what they hold after any appends and cuts, against a list of tokens."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerq_compile.kernels import layout, reference
from innerq_compile.kernels.formats import DTYPES, CacheFormat, blocks_for
from innerq_compile.kernels.modes import names_of
from tests.helpers import brute_force
from tests.helpers.strategies import assert_same_bits, formats, make_format, seeds

dtypes = st.sampled_from(DTYPES)
bit_counts = st.integers(2, 8)


def model_of(fmt: CacheFormat, dtype: torch.dtype) -> brute_force.Sequence:
    def window_round(token):
        return torch.from_numpy(np.asarray(token)).to(dtype).float().numpy()

    return brute_force.Sequence(fmt.sink, fmt.recent, fmt.block, brute_force.quantizer_of(fmt), window_round)


def assert_holds(cache, models, fmt: CacheFormat) -> None:
    """The cache holds exactly the tokens of ``models[b][h]``, each where it should be."""
    state = cache.state
    longest = int(state[..., layout.LENGTH].max())
    held = reference.real_tokens(cache, longest)
    blocks = reference.quantized_blocks(state, fmt)
    for b, row in enumerate(models):
        for h, model in enumerate(row):
            count = len(model.tokens)
            assert int(state[b, h, layout.LENGTH]) == count
            assert fmt.sink + int(blocks[b, h]) * fmt.block == model.boundary
            if count:
                np.testing.assert_array_equal(held[b, h, :count].numpy(), np.stack(model.tokens))
            assert bool((held[b, h, count:] == 0).all())


@st.composite
def histories(draw):
    """A small format, a left-padded prompt and what is done to its cache afterwards."""
    role = draw(st.sampled_from(["key", "value"]))
    dtype = draw(dtypes)
    fmt = make_format(
        role,
        draw(bit_counts),
        draw(st.sampled_from(names_of(role))),
        draw(st.sampled_from([16] if role == "key" else [16, 32, 64])),
        draw(st.sampled_from([0, 3, 8])),
        draw(st.sampled_from([0, 1, 7, 33])),
        dtype,
    )
    tokens = draw(st.integers(1, 120))
    start = draw(st.lists(st.integers(0, tokens - 1), min_size=2, max_size=2))
    steps = draw(
        st.lists(
            st.tuples(st.just("append"), st.integers(1, 70)) | st.tuples(st.just("truncate"), st.integers(0, 200)),
            max_size=4,
        )
    )
    return fmt, dtype, tokens, start, steps


@given(histories(), seeds)
@settings(max_examples=60)
def test_cache_holds_what_its_model_holds(history, seed):
    """Prefill, then any appends and truncations, against a list of tokens and the brute-force quantizer."""
    fmt, dtype, tokens, start, steps = history
    torch.manual_seed(seed)
    x = torch.randn(2, 1, tokens, 16).to(dtype)
    starts = torch.tensor(start, dtype=torch.int32)
    total = tokens + sum(amount for name, amount in steps if name == "append")
    cache = reference.prefill(x, starts, None, None, blocks_for(fmt, total), fmt)
    models = [[model_of(fmt, dtype)] for _ in range(2)]
    for b in range(2):
        for token in x[b, 0, start[b] :].float().numpy():
            models[b][0].append(token)
    assert_holds(cache, models, fmt)
    for name, amount in steps:
        if name == "append":
            new = torch.randn(2, 1, amount, 16).to(dtype)
            reference.append_(cache, new)
            for b in range(2):
                for token in new[b, 0].float().numpy():
                    models[b][0].append(token)
        else:
            reference.truncate_(cache, amount)
            for b in range(2):
                models[b][0].truncate(amount - start[b])
        assert_holds(cache, models, fmt)


@st.composite
def prompts(draw):
    head_dim = draw(st.sampled_from([16, 32, 80]))
    dtype = draw(dtypes)
    fmt = draw(formats(head_dim, max_window=40, dtype=dtype))
    tokens = draw(st.integers(1, 250))
    return fmt, head_dim, dtype, tokens, draw(st.integers(1, tokens))


@given(prompts(), st.booleans(), seeds)
def test_append_continues_prefill_bit_for_bit(prompt, padded, seed):
    """``prefill(x[:S])`` and ``append_`` of the rest leave what ``prefill(x)`` leaves."""
    fmt, head_dim, dtype, tokens, first = prompt
    torch.manual_seed(seed)
    x = torch.randn(2, 2, tokens, head_dim).to(dtype)
    start = torch.tensor([0, first // 2 if padded else 0], dtype=torch.int32)
    mean, norm = (torch.randn(2, 2, head_dim), torch.rand(2, 2, head_dim) + 0.1) if fmt.is_key else (None, None)
    query = torch.rand(2, 2, 2, head_dim) - torch.tensor([[0.5], [0.0]]) if fmt.is_key else None
    capacity = blocks_for(fmt, tokens) + 1
    whole = reference.prefill(x, start, mean, norm, capacity, fmt, query)
    cache = reference.prefill(x[:, :, :first], start, mean, norm, capacity, fmt, query)
    for chunk in x[:, :, first:].split(23, dim=2):
        reference.append_(cache, reference.normalize_keys(chunk, mean, norm))
    assert torch.equal(cache.state, whole.state)
    for b in range(2):
        blocks = int(reference.quantized_blocks(whole.state, fmt)[b, 0])
        assert_same_bits(cache.codes[b, :, :blocks], whole.codes[b, :, :blocks])
        assert_same_bits(cache.scales[b, :, :blocks], whole.scales[b, :, :blocks])
    assert_same_bits(reference.dequantize(cache, tokens), reference.dequantize(whole, tokens))


@given(prompts(), seeds)
def test_truncate_leaves_the_prefix(prompt, seed):
    fmt, head_dim, dtype, tokens, kept = prompt
    torch.manual_seed(seed)
    x = torch.randn(1, 1, tokens, head_dim).to(dtype)
    start = torch.zeros(1, dtype=torch.int32)
    cache = reference.prefill(x, start, None, None, blocks_for(fmt, tokens), fmt)
    before = reference.dequantize(cache, tokens)
    reference.truncate_(cache, kept)
    # a cut block is read once, rounded as the cache's own dtype would be, and is the same afterwards
    assert_same_bits(reference.dequantize(cache, kept), before[:, :, :kept])
    reference.truncate_(cache, kept)
    assert_same_bits(reference.dequantize(cache, kept), before[:, :, :kept])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lossless_cache_is_the_tensor(dtype):
    x = torch.randn(2, 2, 150, 32).to(dtype)
    for role in ("key", "value"):
        fmt = make_format(role, mode="none", sink=8, recent=16, dtype=dtype)
        cache = reference.prefill(x[:, :, :70], torch.zeros(2, dtype=torch.int32), None, None, 4, fmt)
        reference.append_(cache, x[:, :, 70:])
        assert_same_bits(reference.dequantize(cache, 150), x)


@given(st.integers(1, 90), st.lists(st.integers(0, 89), min_size=3, max_size=3), seeds)
def test_left_padding_is_forgotten(tokens, start, seed):
    """Whatever stands in the padding, NaN included, the cache is that of the sequence alone; padding reads as zero."""
    start = [min(s, tokens - 1) for s in start]
    torch.manual_seed(seed)
    fmt = make_format("value", group_size=16, sink=4, recent=8)
    x = torch.randn(3, 1, tokens, 16).half()
    for b in range(3):
        x[b, :, : start[b]] = math.nan
    starts = torch.tensor(start, dtype=torch.int32)
    cache = reference.prefill(x, starts, None, None, blocks_for(fmt, tokens), fmt)
    dense = reference.dequantize(cache, tokens)
    for b in range(3):
        alone = x[b : b + 1, :, start[b] :]
        zero = torch.zeros(1, dtype=torch.int32)
        single = reference.prefill(alone, zero, None, None, blocks_for(fmt, tokens), fmt)
        expected = reference.dequantize(single, tokens - start[b])
        assert_same_bits(dense[b : b + 1, :, start[b] :], expected)
        assert bool((dense[b, :, : start[b]] == 0).all())


def test_key_statistics_are_undone():
    fmt = make_format(mode="none", sink=4, recent=8, dtype=torch.float32)
    x = torch.randn(1, 2, 80, 32) + 5
    start = torch.zeros(1, dtype=torch.int32)
    mean, norm = reference.key_statistics(x, start, centre=True, normalize=True)
    cache = reference.prefill(x, start, mean, norm, 3, fmt)
    held = dataclasses.replace(cache, mean=None, norm=None)
    assert not torch.allclose(reference.dequantize(held, 80), x)
    torch.testing.assert_close(reference.dequantize(cache, 80), x)


def test_cache_without_room_for_blocks():
    """A prompt that fits its windows needs no block at all, and can be cut and read."""
    fmt = make_format("value", sink=4, recent=8)
    x = torch.randn(1, 1, 20, 16).half()
    cache = reference.prefill(x, torch.zeros(1, dtype=torch.int32), None, None, 0, fmt)
    reference.truncate_(cache, 10)
    assert_same_bits(reference.dequantize(cache, 10), x[:, :, :10])


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_steering_does_not_depend_on_the_default_dtype(default):
    """Code that loads models may change it."""
    fmt = make_format("key", 3, "steered", 32, 0, 0, torch.float16, "pair8")
    x, start = torch.randn(1, 2, 64, 64, dtype=torch.float16), torch.zeros(1, dtype=torch.int32)
    expected = reference.prefill(x, start, None, None, 2, fmt)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        actual = reference.prefill(x, start, None, None, 2, fmt)
    finally:
        torch.set_default_dtype(before)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)
