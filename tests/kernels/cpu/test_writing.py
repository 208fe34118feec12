"""Append and prefill on a CPU write the reference's bits."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.kernels import cpu, reference
from innerq_compile.kernels.formats import blocks_for
from tests.helpers.cpu_cases import (
    BASE,
    assert_same,
    bits,
    clone,
    make_caches,
    randn,
    strided,
)

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="no C++ compiler, or INNERQ_CPU_KERNELS=0"),
    pytest.mark.usefixtures("compiled_formats"),
]


@pytest.mark.parametrize("tokens", [1, 30, 250])
@pytest.mark.parametrize("statistics", [False, True], ids=["plain", "normalized"])
def test_prefill(formats, tokens, statistics):
    *fmts, head_dim, value_dim, dtype = formats
    for fmt, dim in zip(fmts, (head_dim, value_dim), strict=True):
        x = strided(randn(3, 2, tokens, dim, dtype=dtype))
        start = torch.tensor([0, tokens // 2, min(7, tokens - 1)], dtype=torch.int32)
        mean, norm = (torch.randn(3, 2, dim), torch.rand(3, 2, dim) + 0.1) if statistics else (None, None)
        query = torch.stack((torch.randn(3, 2, dim), torch.rand(3, 2, dim)), 2) if statistics else None
        capacity = blocks_for(fmt, tokens) + 1
        assert cpu.supports_prefill(fmt, x)
        profile = None if query is None or not fmt.is_key else reference.query_profile(query, norm, fmt.group_size)
        cache = cpu.prefill(x, start, mean, norm, capacity, fmt, profile)
        expected = reference.prefill(x, start, mean, norm, capacity, fmt, profile)
        assert torch.equal(bits(cache.window[:, :, fmt.window :]), bits(expected.window[:, :, fmt.window :]))
        assert [t.dtype for t in cache] == [t.dtype for t in expected]
        assert [t.shape for t in cache] == [t.shape for t in expected]
        assert_same(cache, expected)


@pytest.mark.parametrize("before", [1, 60])
def test_append_one_token_at_a_time(formats, before):
    *_, head_dim, value_dim, dtype = formats
    caches = make_caches(formats, [before, max(1, before - 19)], capacity_slack=6)
    expected = [clone(c) for c in caches]
    for _ in range(80):
        new = [randn(2, 2, 1, dim, dtype=dtype) for dim in (head_dim, value_dim)]
        cpu.append_(tuple(zip(caches, new, strict=True)))
        for cache, x in zip(expected, new, strict=True):
            reference.append_(cache, x)
    for cache, want in zip(caches, expected, strict=True):
        assert_same(cache, want)


def test_append_many_tokens_to_one_side(formats):
    *_, head_dim, value_dim, dtype = formats
    caches = make_caches(formats, [60, 5], capacity_slack=9)
    for cache, dim in zip(caches, (head_dim, value_dim), strict=True):
        want = clone(cache)
        x = randn(2, 2, dim, 190, dtype=dtype).transpose(2, 3)  # channels far apart
        cpu.append_(((cache, x),))
        reference.append_(want, x)
        assert_same(cache, want)


def test_append_in_several_threads_writes_the_same():
    caches, new = make_caches(BASE, [60] * 3, heads=4, capacity_slack=12), randn(3, 4, 150, 64)
    expected = [clone(c) for c in caches]
    cpu.append_(tuple(zip(caches, (new, new), strict=True)))
    for cache, want in zip(caches, expected, strict=True):
        reference.append_(want, new)
        assert_same(cache, want)


def test_append_to_a_full_cache_is_an_error():
    caches = make_caches(BASE, [60], capacity_slack=0)
    with pytest.raises(IndexError, match="room for 0 blocks"):
        cpu.append_(tuple(zip(caches, (randn(1, 2, 90, 64),) * 2, strict=True)))


def edge_tokens(tokens, dim, dtype, is_key):
    """Groups of every awkward kind: zero, constant, huge, tiny, subnormal, infinite, NaN, one outlier."""
    largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    x = torch.randn(tokens, dim)
    kinds = [0.0, -0.0, 1.5, -3.0, largest, -largest, tiny, tiny / 16, float("inf"), -float("inf"), float("nan")]
    lines = x if is_key else x.T  # a row of it lies in groups of its own
    for i, kind in enumerate(kinds):
        lines[2 * i] = kind
        lines[2 * i + 1, 3] = kind
    lines[2 * len(kinds)] *= tiny
    lines[2 * len(kinds) + 1] = lines[2 * len(kinds) + 1].sign() * largest
    return x.to(dtype)[None, None]


def test_edge_groups_are_written_as_the_reference_does(formats):
    *fmts, head_dim, value_dim, dtype = formats
    for fmt, dim in zip(fmts, (head_dim, value_dim), strict=True):
        if dim < 24 and not fmt.is_key:
            continue
        tokens = fmt.sink + fmt.recent + 128
        x = edge_tokens(tokens, dim, dtype, fmt.is_key)
        start = torch.zeros(1, dtype=torch.int32)
        args = (x, start, None, None, blocks_for(fmt, tokens), fmt)
        assert_same(cpu.prefill(*args), reference.prefill(*args))
