"""Triton prefill and append against the reference, in the interpreter (or on the GPU where there is one)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from innerq_compile.kernels import reference
from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.formats import ROLES, blocks_for
from innerq_compile.kernels.modes import names_of
from tests.helpers.strategies import make_format
from tests.helpers.triton_cases import assert_repeatable, assert_same_cache, clone, make_cache

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def normal(*shape, dtype=F16, spread: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * spread).to(dtype).to(DEVICE)


def heads_for(tokens: int) -> int:
    """Two heads, and one where there are many tokens: the interpreter runs one program after the other."""
    return 2 if tokens < 40 else 1


FORMATS = [  # head_dim, dtype, format; every mode, every bit width, both roles, awkward widths
    pytest.param(head_dim, dtype, make_format(role, bits, mode, group, sink, recent, dtype, scale), id=name)
    for name, role, bits, mode, group, sink, recent, head_dim, dtype, scale in [
        ("key-sym3-D64", "key", 3, "symmetric", 32, 4, 20, 64, F16, None),
        ("key-sig2-D128", "key", 2, "signed", 32, 1, 33, 128, F16, None),
        ("key-asym5-D80", "key", 5, "asymmetric", 16, 0, 7, 80, BF16, None),
        ("key-hyb4-D96", "key", 4, "hybrid", 32, 3, 0, 96, F32, None),
        ("key-sig6-D256", "key", 6, "signed", 128, 5, 31, 256, F16, "float32"),
        ("key-sig7-D48", "key", 7, "signed", 16, 4, 20, 48, F32, "float16"),
        ("key-asym8-D16", "key", 8, "asymmetric", 16, 4, 20, 16, F32, "float32"),
        ("key-pair3-D64", "key", 3, "hybrid", 32, 4, 20, 64, BF16, "pair8"),
        ("key-steered3-D64", "key", 3, "steered", 32, 4, 20, 64, F16, "pair8"),
        ("key-steered2-g16-D48", "key", 2, "steered", 16, 0, 7, 48, BF16, "pair8"),
        ("key-steered4-D128", "key", 4, "steered", 32, 4, 20, 128, BF16, "pair8"),
        ("key-steered5-g64-D192", "key", 5, "steered", 64, 0, 7, 192, F32, "pair8"),
        ("key-steered3-g128-D128", "key", 3, "steered", 128, 4, 20, 128, F16, "pair8"),
        ("key-none-D80", "key", 3, "none", 16, 4, 20, 80, BF16, None),
        ("value-sym4-D64", "value", 4, "symmetric", 32, 4, 20, 64, BF16, None),
        ("value-sig3-D80", "value", 3, "signed", 16, 0, 40, 80, F16, None),
        ("value-asym2-D128", "value", 2, "asymmetric", 64, 4, 20, 128, F16, None),
        ("value-hyb5-D48", "value", 5, "hybrid", 32, 2, 0, 48, F16, None),
        ("value-paper2-D64", "value", 2, "paper_hybrid", 32, 2, 20, 64, BF16, None),
        ("value-hyb2-g128-D32", "value", 2, "hybrid", 128, 4, 20, 32, F32, None),
        ("value-sig6-D96", "value", 6, "signed", 32, 4, 20, 96, F32, "float32"),
        ("value-sig7-D16", "value", 7, "signed", 32, 4, 20, 16, F16, None),
        ("value-asym8-D256", "value", 8, "asymmetric", 32, 4, 20, 256, F16, None),
        ("value-pair3-D64", "value", 3, "hybrid", 32, 4, 20, 64, F16, "pair8"),
        ("value-anchored3-D64", "value", 3, "anchored", 32, 4, 20, 64, F16, "pair8"),
        ("value-anchored2-g16-D80", "value", 2, "anchored", 16, 4, 20, 80, BF16, "pair8"),
        ("value-anchored4-g64-D48", "value", 4, "anchored", 64, 4, 20, 48, F32, "float16"),
        ("value-none-D80", "value", 3, "none", 64, 4, 20, 80, F32, None),
    ]
]


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


@pytest.mark.parametrize(("head_dim", "dtype", "fmt"), FORMATS[::2])
def test_rewind_is_the_reference(head_dim, dtype, fmt):
    """To the end, by a token, into the quantized region, into padding."""
    x, start = normal(2, 2, 150, head_dim, dtype=dtype), torch.tensor([0, 9], dtype=torch.int32)
    caches = [make_cache(half, fmt, start) for half in (x, x.flip(2))]
    expected = [clone(cache) for cache in caches]
    for target in (150, 149, 61, 8):
        assert all(kernels.supports_rewind(cache) for cache in caches)
        kernels.rewind_(caches, torch.tensor([target], device=DEVICE))
        for cache, other in zip(caches, expected, strict=True):
            reference.truncate_(other, target)
            assert_same_cache(cache, other)


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


def test_what_is_not_supported_says_so():
    fmt = make_format("key")
    x = normal(1, 1, 4, 64)
    assert kernels.supports_prefill(fmt, x)
    assert not kernels.supports_prefill(fmt, x.double())
    assert not kernels.supports_prefill(fmt, normal(1, 1, 4, 272))
    assert not kernels.supports_append(make_format("key", group_size=128), x)
