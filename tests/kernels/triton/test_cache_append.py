"""Triton's append against the reference, in the interpreter (or on the GPU where there is one)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from innerq_compile.kernels import layout, reference
from innerq_compile.kernels import triton as kernels
from tests.helpers.strategies import formats, make_format, seeds, with_rolling
from tests.helpers.triton_cases import assert_same_cache, clone, make_cache
from tests.helpers.triton_formats import DEVICE, F16, FORMATS, heads_for, normal

pytest.importorskip("triton")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("head_dim", "dtype", "fmt"), FORMATS)
@pytest.mark.parametrize("count", [1, 7, 70])
def test_append_is_the_reference(head_dim, dtype, fmt, count):
    """From a nearly empty cache, and with a window that is about to overflow."""
    for tokens in (2, fmt.sink + fmt.recent + 2 * fmt.block - 1):
        x = normal(2, heads_for(count), tokens, head_dim, dtype=dtype)
        start = torch.tensor([0, 1], dtype=torch.int32)
        cache = make_cache(x, fmt, start, room=-(-count // fmt.block) + 1)
        expected = clone(cache)
        new = normal(2, count, heads_for(count), head_dim, dtype=dtype).transpose(1, 2)
        assert kernels.supports_append(fmt, new)
        kernels.append_(((cache, new),))
        reference.append_(expected, new)
        assert_same_cache(cache, expected)


@pytest.mark.parametrize("count", [1, 3, 70])
def test_append_writes_both_sides(count):
    k_fmt, v_fmt = (
        make_format("key", 4, "signed", 32, 4, 20),
        make_format("value", 2, "hybrid", 64, 0, 9, scale_dtype="float32"),
    )
    sides = []
    for fmt, head_dim in ((k_fmt, 96), (v_fmt, 48)):
        sides.append((make_cache(normal(2, 2, 84, head_dim), fmt, room=4), normal(2, 2, count, head_dim)))
    expected = [clone(cache) for cache, _ in sides]
    kernels.append_(tuple(sides))
    for (cache, new), other in zip(sides, expected, strict=True):
        reference.append_(other, new)
        assert_same_cache(cache, other)


@pytest.mark.parametrize("role", ["key", "value"])
def test_append_token_by_token_is_append_at_once(role):
    fmt = make_format(role, 3, "signed", 32, 4, 8)
    x, new = normal(1, 2, 37, 32), normal(1, 2, 80, 32)
    once, stepwise = make_cache(x, fmt, room=4), make_cache(x, fmt, room=4)
    kernels.append_(((once, new),))
    for i in range(new.shape[2]):
        kernels.append_(((stepwise, new[:, :, i : i + 1]),))
    assert_same_cache(stepwise, once, flips=0.0)


@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("keep", [0, 3, 70, 131, 149])
def test_append_after_a_crop(role, keep):
    fmt = make_format(role, 3, "signed", 32, 4, 20)
    cache = make_cache(normal(2, 2, 150, 64), fmt, torch.tensor([0, 40], dtype=torch.int32), room=4, keep=keep)
    expected = clone(cache)
    for count in (1, 30, 60):
        new = normal(2, 2, count, 64)
        kernels.append_(((cache, new),))
        reference.append_(expected, new)
        assert_same_cache(cache, expected)


@st.composite
def appends(draw):
    """Formats of both sides, tokens of the prompt, where its sequences start, and appends of ``(tokens, drop)``."""
    sides = [draw(with_rolling(formats(32, roles=(role,), max_window=40))) for role in ("key", "value")]
    tokens = draw(st.integers(1, 60))
    # a rolling prompt of more tokens than the ring is not one that the reference makes
    tokens = min([tokens, *(fmt.ring for fmt in sides if fmt.rolls)])
    start = [draw(st.integers(0, tokens)) for _ in range(2)]
    steps = draw(st.lists(st.tuples(st.sampled_from([1, 1, 2, 7, 33, 70]), st.integers(0, 40)), min_size=1, max_size=3))
    return sides, tokens, start, steps


@settings(max_examples=20)
@given(appends(), seeds)
def test_appends_hide_tokens_at_the_front(case, seed):
    (k_fmt, v_fmt), tokens, start, steps = case
    assume(all(kernels.supports_append(fmt, normal(1, 1, 1, 32)) for fmt in (k_fmt, v_fmt)))
    torch.manual_seed(seed)
    caches = [make_cache(normal(2, 1, tokens, 32), fmt, torch.tensor(start), room=8) for fmt in (k_fmt, v_fmt)]
    expected = [clone(cache) for cache in caches]
    for count, drop in steps:
        new = [normal(2, 1, count, 32) for _ in caches]
        kernels.append_(tuple(zip(caches, new, strict=True)), drop)
        for cache, other, x in zip(caches, expected, new, strict=True):
            reference.append_(other, x, drop)
            assert_same_cache(cache, other)


def test_nothing_is_appended_and_some_is_dropped():
    fmt = make_format("key", 4, "signed", 32, 4, 20)
    cache = make_cache(normal(2, 1, 50, 32), fmt)
    kernels.append_(((cache, normal(2, 1, 0, 32)),), 3)
    assert (cache.state[..., layout.HIDDEN] == 3).all() and (cache.state[..., layout.LENGTH] == 50).all()


def test_a_full_cache_is_not_written_beyond():
    """Appending without room is the caller's error; other memory stays what it was all the same."""
    fmt = make_format("key", 4, "signed", 32, 0, 0)
    store = torch.zeros(1, 1, 4, 32 * 32 * 4 // 32, dtype=torch.int32, device=DEVICE)
    scales = torch.zeros(1, 1, 4, 32, dtype=F16, device=DEVICE)
    cache = reference.empty_cache(fmt, 1, 1, 32, 1, F16, DEVICE)
    cache = dataclasses.replace(cache, codes=store[:, :, :1], scales=scales[:, :, :1])
    kernels.append_(((cache, normal(1, 1, 100, 32)),))
    assert store[:, :, 0].any()
    assert not store[:, :, 1:].any()
    assert not scales[:, :, 1:].any()
