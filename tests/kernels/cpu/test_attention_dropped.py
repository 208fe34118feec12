"""Caches whose first tokens the program has dropped, and rolling caches, on a CPU: the reference's results."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import cpu, layout, reference
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.backend import Kernel
from innerq_compile.kernels.cache import Cache
from innerq_compile.kernels.formats import ROLLING_BLOCKS, blocks_for
from tests.helpers.cpu_cases import (
    BASE,
    PAIRS,
    ROLLING,
    assert_attends,
    assert_same,
    clone,
    make_caches,
    randn,
    with_windows,
)
from tests.helpers.strategies import seeds
from tests.helpers.torch_threads import threads

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="no C++ compiler, or INNERQ_CPU_KERNELS=0"),
    pytest.mark.usefixtures("compiled_formats"),
]

HEADS = 2
SINKS, RECENTS = st.sampled_from([0, 1, 4, 32, 259]), st.integers(0, 96)


@st.composite
def windowed(draw):
    """Formats with windows of any size, the same for both sides or not, and the most tokens that may be visible."""
    if draw(st.booleans()):
        formats = draw(st.sampled_from(list(ROLLING.values())))
        formats = with_windows(formats, *((0, draw(st.integers(1, 300))) for _ in range(2)))
        return formats, min(fmt.ring for fmt in formats[:2])
    window = draw(SINKS), draw(RECENTS)
    other = draw(st.sampled_from([window, (draw(SINKS), draw(RECENTS))]))
    return with_windows(draw(st.sampled_from(list(PAIRS.values()))), window, other), None


def prompt(formats, start, tokens, capacity):
    """Both sides of a cache, made in C++ from a random prompt, and those that the reference makes of it."""
    *fmts, head_dim, value_dim, dtype = formats
    caches, expected = [], []
    for fmt, dim in zip(fmts, (head_dim, value_dim), strict=True):
        x = randn(len(start), HEADS, tokens, dim, dtype=dtype)
        room = ROLLING_BLOCKS if fmt.rolls else blocks_for(fmt, capacity)
        assert cpu.supports_prefill(fmt, x) and cpu.supports_append(fmt, x)
        caches.append(cpu.prefill(x, start, None, None, room, fmt))
        expected.append(reference.prefill(x, start, None, None, room, fmt))
    return caches, expected


def append(caches, expected, count, drop):
    """Append random tokens to caches in C++, and to ``expected`` by the reference."""
    new = [randn(*c.window.shape[:2], count, c.window.shape[3], dtype=c.window.dtype) for c in caches]
    cpu.append_(tuple(zip(caches, new, strict=True)), drop)
    for cache, want, x in zip(caches, expected, new, strict=True):
        reference.append_(want, x, drop)
        assert_same(cache, want)


def random_mask(kind, batch, q_heads, rows, length):
    """A mask of ``length`` places in the tensor that is attended to; rows may see nothing."""
    seen = torch.rand(batch, q_heads, rows, length) < 0.7
    if kind == "bool":
        return seen
    added = torch.randn(batch, q_heads, rows, length).masked_fill(~seen, float("-inf"))
    if kind == "positions-first":
        return added.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    return added[:1, :1].half() if kind == "float16" else added


@given(st.data(), seeds)
def test_dropping_tokens(data, seed):
    """Several appends that drop tokens; after each, attention to a tensor that lacks more or fewer of them."""
    torch.manual_seed(seed)
    draw = data.draw
    formats, most = draw(windowed())
    *_, head_dim, _, dtype = formats
    tokens = draw(st.integers(1, most or 700))
    start = draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=3))
    steps = draw(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 300)), min_size=1, max_size=4))
    total = tokens + sum(count for count, _ in steps)
    caches, expected = prompt(formats, torch.tensor(start, dtype=torch.int32), tokens, total)
    for cache, want in zip(caches, expected, strict=True):
        assert_same(cache, want)
    hidden = 0
    for count, wanted in steps:
        tokens += count
        gone = tokens - most if most else 0  # a rolling cache has lost these
        drop = min(max(wanted, gone - hidden), tokens - hidden)
        hidden += drop
        append(caches, expected, count, drop)
        dropped = draw(st.integers(-40, hidden - max(gone, 0)), label="dropped")
        options = {"dropped": dropped, "softcap": draw(st.sampled_from([0.0, 5.0])), "causal": draw(st.booleans())}
        rows, q_heads = draw(st.integers(1, 5)), HEADS * draw(st.integers(1, 3))
        kind = draw(st.sampled_from([None, "bool", "float", "float16", "positions-first"]))
        if kind is not None:
            length = tokens - hidden + dropped + draw(st.sampled_from([0, 0, -20, 9]))
            options["mask"] = random_mask(kind, len(start), q_heads, rows, max(length, 1))
        if draw(st.booleans()):
            options["sink_logits"] = torch.randn(q_heads)
        with threads(draw(st.integers(1, 3))):
            assert_attends(
                formats, caches, randn(len(start), q_heads, rows, head_dim, dtype=dtype), tolerance=3, **options
            )


@pytest.mark.parametrize("hidden", [1, 4, 5, 35, 36, 37, 259, 260, 261, 292, 1227, 1228, 1299, 1300, 1400])
@pytest.mark.parametrize("count", [1, 2])
def test_dropped_at_the_edges_of_blocks_and_chunks(hidden, count):
    caches = make_caches(BASE, [1300, 700])
    append(caches, [clone(cache) for cache in caches], 1, hidden)
    with threads(count):
        assert_attends(BASE, caches, randn(2, 6, 3, 64), causal=True)


@pytest.mark.parametrize("formats", ROLLING.values(), ids=ROLLING.keys())
def test_a_rolling_cache_that_has_wrapped_many_times(formats):
    formats = with_windows(formats, (0, 3), (0, 3))
    *fmts, head_dim, _, dtype = formats
    most, tokens, hidden = min(fmt.ring for fmt in fmts), 30, 0
    caches, expected = prompt(formats, torch.tensor([0, 20], dtype=torch.int32), tokens, 0)
    for step in range(120):
        count = 120 if step % 20 == 19 else 1  # more than the ring has slots
        tokens += count
        drop = max(tokens - most - hidden, 0)
        hidden += drop
        append(caches, expected, count, drop)
        if step % 9 == 0:
            mask = random_mask("bool" if step % 2 else "float", 2, 4, 2, tokens - hidden)
            assert_attends(formats, caches, randn(2, 4, 2, head_dim, dtype=dtype), mask=mask, causal=True)
    for cache in caches:
        assert tokens > 10 * cache.format.ring
        assert cache.state[:, 0].tolist() == [[0, tokens, 0, hidden], [20, tokens - 20, 0, hidden]]


def test_time_and_memory_are_those_of_visible_tokens():
    """A rolling cache of a billion tokens: were they all visited, a call would take minutes."""
    formats = ROLLING["rolling-D64-f32"]
    caches, _ = prompt(formats, torch.zeros(1, dtype=torch.int32), 60, 0)
    expected = reference.decode_attention(AttentionCall(query := randn(1, 4, 1, 64), *caches, None, None, None, 0.1))
    ring = caches[0].format.ring
    for cache in caches:
        cache.state[..., layout.LENGTH] += 10**9 // ring * ring
        cache.state[..., layout.HIDDEN] += 10**9 // ring * ring
    begin = time.perf_counter()
    out = cpu.decode_attention(AttentionCall(query, *caches, None, None, None, 0.1))
    assert time.perf_counter() - begin < 1
    torch.testing.assert_close(out, expected)


def poison_hidden(cache: Cache, hidden: int) -> None:
    """Fill slots and blocks of tokens before ``hidden``, and nothing else, with NaN."""
    fmt, codes, scales, window, _ = cache.format, *cache.encoded
    blocks = int(reference.quantized_blocks(cache.state, fmt).max())
    length = int(cache.state[..., layout.LENGTH].max())
    whole = min(max(hidden - fmt.sink, 0) // fmt.block, blocks)
    codes[:, :, :whole] = 0x5A5A5A5A if fmt.quantized else float("nan")
    scales[:, :, :whole] = float("nan") if scales.is_floating_point() else 0x7F
    window[:, :, : min(hidden, fmt.sink)] = float("nan")
    for token in range(max(fmt.sink + blocks * fmt.block, length - fmt.ring), min(hidden, length)):
        window[:, :, fmt.sink + (token - fmt.sink) % fmt.ring] = float("nan")


@pytest.mark.parametrize("hidden", [3, 100, 285])
@pytest.mark.parametrize(
    "formats", [*PAIRS.values(), with_windows(BASE, (4, 40), (4, 200))], ids=[*PAIRS, "other-windows"]
)
def test_nothing_that_is_hidden_is_read(formats, hidden):
    """Also not multiplied by zero, which NaN would survive."""
    *_, head_dim, _, dtype = formats
    caches = make_caches(formats, [300, 300])
    append(caches, [clone(cache) for cache in caches], 1, hidden)
    call = AttentionCall(randn(2, 4, 2, head_dim, dtype=dtype), *caches, None, None, None, 0.1)
    before = cpu.decode_attention(call)
    for cache in caches:
        poison_hidden(cache, hidden)
    assert before.isfinite().all()
    assert torch.equal(cpu.decode_attention(call), before)


def test_dropped_tokens_in_what_kernels_do_not_take():
    """Views of caches are appended to by the reference, which drops as many."""
    caches = make_caches(BASE, [100, 80])
    views = [cache.map(lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1)) for cache in caches]
    new = randn(2, 2, 40, 64)
    for sides in (views, caches):
        cpu.append_(tuple(zip(sides, (new, new), strict=True)), 30)
        cpu.append_(((sides[0], new),), 7)
    for got, want in zip(views, caches, strict=True):
        assert_same(got.map(torch.Tensor.contiguous), want)


@pytest.mark.parametrize("formats", ROLLING.values(), ids=ROLLING.keys())
def test_rolling_caches_have_kernels(formats):
    *_, head_dim, _, dtype = formats
    caches, _ = prompt(formats, torch.zeros(1, dtype=torch.int32), 20, 0)
    call = AttentionCall(randn(1, 4, 1, head_dim, dtype=dtype), *caches, None, None, None, 0.1, dropped=-3)
    assert cpu.supports_decode(call) and cpu.decode_kernel(call).kernel is Kernel.CPP
    assert not cpu.supports_decode(dataclasses.replace(call, query=call.query.double()))
