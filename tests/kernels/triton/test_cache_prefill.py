"""Triton's prefill against the reference, in the interpreter (or on the GPU where there is one)."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.kernels import reference
from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.formats import ROLES, blocks_for
from innerq_compile.kernels.modes import names_of
from tests.helpers.strategies import make_format
from tests.helpers.triton_cases import assert_repeatable, assert_same_cache
from tests.helpers.triton_formats import BF16, DEVICE, F16, F32, FORMATS, heads_for, normal

pytest.importorskip("triton")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("head_dim", "dtype", "fmt"), FORMATS)
@pytest.mark.parametrize("tokens", [1, 23, 175])
def test_prefill_is_the_reference(head_dim, dtype, fmt, tokens):
    heads = heads_for(tokens)
    x = normal(2, tokens, heads, head_dim, dtype=dtype).transpose(1, 2)
    start = torch.tensor([0, tokens // 3], dtype=torch.int32, device=DEVICE)
    mean = norm = query = None
    if fmt.is_key:
        mean, norm = normal(2, heads, head_dim, dtype=F32), torch.rand(2, heads, head_dim).to(DEVICE) + 0.5
        query = torch.stack((normal(2, heads, head_dim, dtype=F32), torch.rand(2, heads, head_dim).to(DEVICE)), 2)
        query = reference.query_profile(query, norm, fmt.group_size)
    capacity = blocks_for(fmt, tokens) + 1
    assert kernels.supports_prefill(fmt, x)
    actual = kernels.prefill(x, start, mean, norm, capacity, fmt, query)
    expected = reference.prefill(x, start, mean, norm, capacity, fmt, query)
    assert [(t.shape, t.dtype) for t in actual] == [(t.shape, t.dtype) for t in expected]
    assert_same_cache(actual, expected)
    if tokens == 23:
        assert_repeatable(lambda: kernels.prefill(x, start, mean, norm, capacity, fmt, query))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("prompt", [30, 75, 200])
def test_a_rolling_prompt_is_a_short_one_and_appends(role, prompt):
    """Also one that is longer than what the cache holds, of which it has the last tokens."""
    fmt = make_format(role, 3, "rolling", 32, 0, 41)
    x, start = normal(2, 1, prompt, 48), torch.tensor([0, 9], dtype=torch.int32, device=DEVICE)
    actual = kernels.prefill(x, start, None, None, 2, fmt)
    expected = reference.prefill(x[:, :, :20], start, None, None, 2, fmt)
    reference.append_(expected, x[:, :, 20:])
    assert actual.codes.shape == (2, 1, 2, 1)
    assert_same_cache(actual, expected)


@pytest.mark.parametrize(("role", "mode"), [(role, mode) for role in ROLES for mode in names_of(role)])
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
def test_extreme_groups(role, mode, dtype):
    fmt = make_format(role, 3, mode, 32, 0, 0, dtype)
    x = normal(1, 1, 32, 32, dtype=dtype)
    edges = [0.0, 1.0, torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 4, float("nan"), float("inf")]
    if dtype != F16 and DEVICE == "cpu":
        edges[3] = 0.5  # the interpreter reads subnormal bfloat16 as zero
    for i, edge in enumerate(edges):
        group = x[0, 0, i] if fmt.is_key else x[0, 0, :, i]
        group[:] = edge
        if i == 2:
            group[::2] = -edge
        if i > 3:
            group[1:] = 1.0
    start = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    actual = kernels.prefill(x, start, None, None, 1, fmt)
    expected = reference.prefill(x, start, None, None, 1, fmt)
    assert_same_cache(actual, expected, flips=0.02)


def test_what_is_not_supported_says_so():
    fmt = make_format("key")
    x = normal(1, 1, 4, 64)
    assert kernels.supports_prefill(fmt, x)
    assert not kernels.supports_prefill(fmt, x.double())
    assert not kernels.supports_prefill(fmt, normal(1, 1, 4, 592))
    assert not kernels.supports_append(make_format("key", group_size=128), x)
