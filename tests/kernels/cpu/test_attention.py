"""Attention on a CPU against the reference in float64."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from innerq_compile.kernels import cpu, layout, reference
from innerq_compile.kernels.attention_call import AttentionCall
from tests.helpers.cpu_cases import (
    BASE,
    F32,
    SINK,
    assert_attends,
    assert_same,
    clone,
    make_caches,
    pair,
    poison,
    randn,
    strided,
)
from tests.helpers.torch_threads import threads

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="no C++ compiler, or INNERQ_CPU_KERNELS=0"),
    pytest.mark.usefixtures("compiled_formats"),
]


@pytest.mark.parametrize("length", [1, 43, 300])
def test_decode(formats, length):
    caches = make_caches(formats, [length, max(1, length - 23)], heads=1)
    assert_attends(formats, caches, randn(2, 3, 1, formats[2], dtype=formats[4]))


@pytest.mark.parametrize("length", [SINK, SINK + 1, SINK + 256, SINK + 257, 1100])
def test_decode_at_the_edges_of_chunks(length):
    assert_attends(BASE, make_caches(BASE, [length, 33]), randn(2, 6, 1, 64))


@pytest.mark.parametrize("rows", [2, 7])
def test_decode_several_rows_causal(formats, rows):
    caches = make_caches(formats, [301, 9])
    query = strided(randn(2, 4, rows, formats[2], dtype=formats[4]))
    assert_attends(formats, caches, query, causal=True)


@pytest.mark.parametrize("length", [1, 43, 301])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_part_of_the_query_is_multiplied_by_the_values(formats, length, rows):
    caches = make_caches(formats, [length, max(1, length - 23)], heads=1)
    query, other = (strided(randn(2, 5, rows, dim, dtype=formats[4])) for dim in formats[2:4])
    assert_attends(formats, caches, query, causal=True, value_query=other)


@pytest.mark.parametrize("dropped", [0, 3, 70])
def test_values_that_are_multiplied_by_the_query_in_chunks_and_threads(dropped):
    caches = make_caches(BASE, [1300, 40, 700], heads=2)
    for cache in caches:
        cache.state[..., layout.HIDDEN] = dropped
    query, other = randn(3, 8, 1, 64), randn(3, 8, 1, 64)
    mask = masks(3, 8, 1, 1300 - dropped)["bool"]
    with threads(3):
        assert_attends(BASE, caches, query, mask=mask, value_query=other, softcap=3.0, sink_logits=torch.randn(8))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("value_heads", [(0, 2), (2, 2), (1, 3), (5, 1)])
def test_values_of_other_heads(formats, value_heads, rows):
    caches = make_caches(formats, [301, 43], heads=6)
    query = strided(randn(2, 12, rows, formats[2], dtype=formats[4]))
    with threads(2):
        assert_attends(formats, caches, query, causal=True, value_heads=value_heads)


def test_values_of_other_heads_in_latent_attention():
    caches = make_caches(BASE, [301, 43], heads=4)
    query, other = randn(2, 8, 1, 64), randn(2, 8, 1, 64)
    assert_attends(BASE, caches, query, value_query=other, value_heads=(2, 2))


def test_latent_attention_of_the_largest_models():
    """128 query heads of one KV head: a rotary key of 64 channels, a latent of 512, and four query tokens."""
    formats = pair((8, "hybrid", 32), (3, "anchored", 32), 64, 512, F32, "pair8")
    query, other = randn(1, 128, 4, 64), randn(1, 128, 4, 512)
    assert_attends(
        formats, make_caches(formats, [700], heads=1), query, causal=True, value_query=other, scale=192**-0.5
    )


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
def test_decode_groups_of_query_heads(group):
    assert_attends(BASE, make_caches(BASE, [600, 150]), randn(2, 2 * group, 1, 64))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_decode_in_any_number_of_threads(count, batch):
    caches = make_caches(BASE, [1300, 40, 700][:batch])
    with threads(count):
        assert_attends(BASE, caches, randn(batch, 6, 1, 64), causal=True)


def masks(batch, heads, rows, length):
    """Masks over ``length`` logical positions; every row sees something."""
    seen = torch.rand(batch, heads, rows, length) < 0.7
    seen[..., -1] = True
    added = torch.randn(batch, heads, rows, length)
    lowest = torch.where(seen, 0.0, torch.finfo(F32).min)
    return {
        "bool": seen,
        "bool-broadcast": seen[:1, :1, :1],
        "bool-expanded": seen[:, :1].expand(-1, heads, -1, -1),
        "float": added.masked_fill(~seen, float("-inf")),
        "float-lowest": lowest[:, :1],
        "float-positions-first": added.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        "float-three-dimensions": added[0, :1],
        "float-one-position": added[..., :1],
        "bfloat16": added.bfloat16(),
        "float16": added.half(),
        "longer": torch.nn.functional.pad(added, (0, 40), value=9.0),
        "shorter": added[..., : length // 2],
    }


@pytest.mark.parametrize("name", masks(1, 1, 1, 8))
@pytest.mark.parametrize("rows", [1, 3])
def test_decode_mask(name, rows):
    caches = make_caches(BASE, [333, 290])
    mask = masks(2, 6, rows, 333)[name]
    assert_attends(BASE, caches, randn(2, 6, rows, 64), mask=mask, causal=rows > 1)


@pytest.mark.parametrize("rows", [17, 43, 130])
@pytest.mark.parametrize("name", [None, "bool", "float", "float-positions-first"])
def test_decode_many_query_tokens(rows, name):
    """More rows than a pass takes (128, so 42 tokens of three heads): a prompt that comes in chunks."""
    caches = make_caches(BASE, [333, 290])
    mask = masks(2, 6, rows, 333)[name] if name else None
    query, sinks = strided(randn(2, 6, rows, 64)), torch.randn(6)
    assert_attends(BASE, caches, query, mask=mask, causal=name is None, sink_logits=sinks)
    by_row = torch.randn(2, rows, 6).transpose(1, 2)
    assert_attends(BASE, caches, query, mask=mask, causal=name is None, sink_logits=by_row)


def test_decode_more_heads_in_a_group_than_a_pass_has_rows():
    assert_attends(BASE, make_caches(BASE, [150], heads=1), randn(1, 129, 2, 64), causal=True)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak of resident memory")
def test_memory_of_many_query_tokens_is_bounded(one_thread):
    """Neither the scores of all rows nor a dense cache: less than a quarter of either."""
    query, caches = randn(1, 8, 2048, 64), make_caches(BASE, [16384], heads=1)
    call = AttentionCall(query, *caches, None, None, None, 0.1, causal=True)
    cpu.decode_attention(dataclasses.replace(call, query=query[:, :, :1]))  # compiles
    out_bytes, scores, dense = query.nbytes, 8 * 2048 * 512 * 4, 2 * 16384 * 64 * 4
    before = peak_memory(reset=True)
    out = cpu.decode_attention(call)
    grown = peak_memory() - before
    assert out.shape == query.shape
    assert grown - out_bytes < min(scores, dense) / 4, f"{grown - out_bytes} bytes"


def peak_memory(reset: bool = False) -> int:
    """Most bytes that were resident since the last reset."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"sinks": True}, {"softcap": 30.0, "sinks": True, "scale": 1.0}])
def test_decode_softcap_and_sink_logits(formats, options):
    options = dict(options)
    if options.pop("sinks", False):
        options["sink_logits"] = torch.randn(6).to(formats[4])
    caches = make_caches(formats, [280, 31])
    assert_attends(formats, caches, randn(2, 6, 2, formats[2], dtype=formats[4]), causal=True, tolerance=3, **options)


def test_decode_reads_nothing_that_holds_no_token(formats):
    *_, head_dim, _, dtype = formats
    query = randn(3, 4, 1, head_dim, dtype=dtype)
    caches = make_caches(formats, [260, 45, 2])
    call = AttentionCall(query, *caches, None, None, None, 0.1)
    before = cpu.decode_attention(call)
    for cache in caches:
        poison(cache)
    assert torch.equal(cpu.decode_attention(call), before)
    assert before.isfinite().all()


def test_decode_of_an_empty_cache_and_of_rows_that_see_nothing():
    caches = [reference.empty_cache(fmt, 1, 2, 64, 1, F32, "cpu") for fmt in BASE[:2]]
    assert_zero(caches, None)
    caches = make_caches(BASE, [100])
    for mask in (torch.zeros(1, 1, 1, 100, dtype=torch.bool), torch.full((1, 1, 1, 100), float("-inf"))):
        assert_zero(caches, mask)


def assert_zero(caches, mask):
    out = cpu.decode_attention(AttentionCall(randn(1, 4, 1, 64), *caches, mask, None, None, 0.1))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("keep", [3, 100, 217])
def test_decode_and_append_after_truncate(formats, keep):
    *_, head_dim, value_dim, dtype = formats
    caches = make_caches(formats, [256, 240])
    for cache in caches:
        reference.truncate_(cache, keep)
    assert_attends(formats, caches, randn(2, 4, 1, head_dim, dtype=dtype))
    expected = [clone(c) for c in caches]
    new = [randn(2, 2, 70, dim, dtype=dtype) for dim in (head_dim, value_dim)]
    cpu.append_(tuple(zip(caches, new, strict=True)))
    for cache, want, x in zip(caches, expected, new, strict=True):
        reference.append_(want, x)
        assert_same(cache, want)
    assert_attends(formats, caches, randn(2, 4, 1, head_dim, dtype=dtype))


@pytest.mark.parametrize("windows", [(0, 32), (32, 96), (300, 33), (257, 0)])
def test_decode_other_windows(windows):
    formats = pair((3, "signed", 32), (3, "signed", 32), 64, 64, F32, "bfloat16", *windows)
    assert_attends(formats, make_caches(formats, [900, 420]), randn(2, 6, 1, 64))


def test_decode_with_windows_of_different_sizes():
    """Blocks of values that lie across the chunks, which begin where the keys' sinks end."""
    k_fmt = pair((3, "signed", 32), (3, "signed", 32), 64, 64, F32, "bfloat16", 4, 40)[0]
    v_fmt = pair((3, "signed", 32), (3, "signed", 32), 64, 64, F32, "bfloat16", 23, 71)[1]
    formats = (k_fmt, v_fmt, 64, 64, F32)
    assert_attends(formats, make_caches(formats, [900, 420]), randn(2, 6, 1, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("token", [0, 60, 299], ids=["sink", "quantized", "recent"])
@pytest.mark.parametrize("side", [0, 1], ids=["key", "value"])
def test_nan_and_infinity_stay_where_the_reference_has_them(value, token, side):
    k_fmt, v_fmt, *_ = BASE
    x = [randn(2, 2, 300, 64) for _ in range(2)]
    x[side][1, 0, token, 5] = value
    start = torch.zeros(2, dtype=torch.int32)
    caches = [cpu.prefill(t, start, None, None, 9, fmt) for t, fmt in zip(x, (k_fmt, v_fmt), strict=True)]
    query = randn(2, 4, 1, 64)
    call = AttentionCall(query, *caches, None, None, None, 0.125)
    out, expected = cpu.decode_attention(call), reference.decode_attention(call)
    assert torch.equal(out.isfinite(), expected.isfinite())
    good = expected.isfinite()
    assert good[0].all() and good[1, 2:].all()  # other sequences and other heads
    torch.testing.assert_close(out[good], expected[good], rtol=2e-5, atol=2e-5)


def test_nan_in_one_query_stays_in_its_row():
    query = randn(1, 4, 3, 64)
    query[0, 1, 2, 7] = float("nan")
    caches = make_caches(BASE, [300])
    out = cpu.decode_attention(AttentionCall(query, *caches, None, None, None, 0.1, causal=True))
    assert out[0, 1, 2].isnan().all()
    out[0, 1, 2] = 0
    assert out.isfinite().all()


def test_large_scores():
    """Differences of scores beyond what exp can hold, both ways."""
    assert_attends(BASE, make_caches(BASE, [700]), 100 * randn(1, 4, 1, 64), scale=1.0, tolerance=20)


def test_what_kernels_do_not_take_is_left_to_the_reference():
    caches = make_caches(BASE, [100, 80])
    query = randn(2, 4, 1, 64)
    call = AttentionCall(query, *caches, None, None, None, 0.1)
    assert cpu.supports_decode(call)
    assert not cpu.supports_decode(dataclasses.replace(call, query=query.double()))
    assert not cpu.supports_decode(dataclasses.replace(call, query=query.half()))
    assert not cpu.supports_decode(dataclasses.replace(call, mask=query.double()))
    views = [cache.map(lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1)) for cache in caches]
    assert not cpu.supports_decode(AttentionCall(query, *views, None, None, None, 0.1))
    expected = [clone(c) for c in caches]
    new = randn(2, 2, 40, 64)
    for sides in (views, expected):
        cpu.append_(tuple(zip(sides, (new, new), strict=True)))
    for got, want in zip(views, expected, strict=True):
        assert_same(got.map(torch.Tensor.contiguous), want)
