"""The Triton kernels on a CUDA device, over a sample of the product's range, against the reference in float64."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from innerq_compile.kernels import (
    dispatch,
    ops,  # noqa: F401  (defines the innerq:: operators)
    reference,
)
from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.formats import blocks_for
from innerq_compile.kernels.modes import MODES, names_of
from innerq_compile.kernels.triton.attention import FieldsConfig
from tests.helpers.strategies import CONFIG_MODES, make_format, mode_of
from tests.helpers.triton_cases import Attention, assert_repeatable, assert_same_cache, clone, make_cache

pytestmark = pytest.mark.gpu
triton = pytest.importorskip("triton")

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
HEAD_DIMS = (64, 80, 96, 128, 256)
FIELD_HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 240, 256)
SAMPLES = 28


def sampled_attentions(count: int, seed: int = 5) -> list[Attention]:
    """Cases that between them take every value of every parameter several times."""
    rng = random.Random(seed)

    def deck(*values):
        """Each value equally often, in random order."""
        while True:
            yield from rng.sample(values, len(values))

    head_dims, dtypes = deck(*HEAD_DIMS), deck(F16, BF16, F32)
    k_modes, v_modes = deck(*names_of("key")), deck(*names_of("value"))
    k_bits, v_bits = deck(2, 3, 4, 5, 6, 7, 8), deck(2, 3, 4, 5, 6, 7, 8)
    windows, groups = deck((32, 96), (4, 20), (0, 0), (5, 128)), deck((1, 1), (4, 1), (3, 1), (8, 2), (2, 9), (16, 1))
    batches, tokens = deck(1, 2, 8), deck(4096, 1000, 333, 40)
    masks, v_groups = deck("none", "none", "bool", "added", "added-heads", "open", "open-added"), deck(32, 32, 64, 128)
    scales = deck(None, None, "float32")
    cases = []
    for _ in range(count):
        dtype, head_dim, (sink, recent) = next(dtypes), next(head_dims), next(windows)
        scale = next(scales)
        key = make_format("key", next(k_bits), next(k_modes), 16 if head_dim == 80 else 32, sink, recent, dtype, scale)
        value = make_format("value", next(v_bits), next(v_modes), next(v_groups), sink, recent, dtype, scale)
        batch, length, (group, rows) = next(batches), next(tokens), next(groups)
        cases.append(
            Attention(
                key, value, dtype, batch, 8 if batch < 8 else 4, group, rows, length, head_dim,
                padded=rng.random() < 0.5, mask=next(masks), causal=rng.random() < 0.7,
                softcap=rng.choice([0.0, 0.0, 20.0]), sinks=rng.random() < 0.3,
                keep=length - 37 if rng.random() < 0.2 else None, room=rng.choice([0, 1, 100]),
            )
        )  # fmt: skip
    return cases


def preset(name: str, dtype=F16):
    bits = {"base": (3, 3), "small": (3, 2), "int4": (4, 4), "two": (2, 2), "lossless": (3, 3)}[name]
    mode = "none" if name == "lossless" else "signed"
    sides = (make_format(role, b, mode, dtype=dtype) for role, b in zip(("key", "value"), bits, strict=True))
    return dict(zip(("k_fmt", "v_fmt"), sides, strict=True), dtype=dtype)


PRESETS = [
    Attention(**preset(name, dtype), batch=batch, heads=8, group=group, tokens=4096, head_dim=head_dim, room=0)
    for name, dtype, batch, group, head_dim in [
        ("base", F16, 4, 4, 128),
        ("base", BF16, 8, 4, 128),
        ("small", F16, 2, 1, 128),
        ("int4", F16, 4, 4, 128),
        ("two", F16, 1, 8, 128),
        ("base", F16, 2, 3, 64),
        ("int4", BF16, 2, 2, 256),
        ("lossless", BF16, 2, 4, 128),
        ("lossless", F32, 2, 4, 64),
    ]
]


def sampled_fields(count: int, seed: int = 7) -> list[Attention]:
    """Cases of the fast kernel: of all pairs of bit widths at all head_dims, the rest drawn at random, too."""
    rng = random.Random(seed)
    pairs = list(itertools.product((2, 3, 4, 8), (2, 3, 4, 8), FIELD_HEAD_DIMS))
    rng.shuffle(pairs)
    cases = []
    for k_bits, v_bits, head_dim in pairs[:count]:
        dtype, (sink, recent) = rng.choice([F16, BF16]), rng.choice([(32, 96), (4, 20), (0, 0)])
        modes = [name for name, mode in MODES.items() if mode.stores_codes]
        groups = [size for size in (16, 32, 64) if head_dim % size == 0]
        key = make_format("key", k_bits, mode_of("key", rng.choice(modes)), rng.choice(groups), sink, recent, dtype)
        value = make_format("value", v_bits, mode_of("value", rng.choice(modes)), 32, sink, recent, dtype)
        group, rows = rng.choice([(1, 1), (4, 1), (3, 1), (8, 1), (16, 1), (2, 5), (5, 4)])
        length, plain = rng.choice([4096, 1000, 333]), rng.random() < 0.5
        cases.append(
            Attention(
                key, value, dtype, rng.choice([1, 4]), 4, group, rows, length, head_dim,
                padded=rng.random() < 0.3, mask="none" if plain else rng.choice(["bool", "added", "added-heads"]),
                softcap=0.0 if plain else rng.choice([0.0, 20.0]), sinks=rng.random() < 0.2,
                keep=length - 37 if rng.random() < 0.2 else None, room=rng.choice([0, 100]),
            )
        )  # fmt: skip
    return cases


#: Every kind of mask with and without padding, where the fast kernel has tiles of both shapes.
MASKED = [
    Attention(
        make_format("key", 3, "signed", 32, 4, 20), make_format("value", 3, "signed", 32, 4, 20), F16, 2, 2, group, 1,
        1000, head_dim, padded=padded, mask=mask, softcap=softcap, causal=not mask.startswith("open"),
    )
    for head_dim in (64, 128)
    for group in (3, 16)
    for mask, softcap in (("bool", 0.0), ("added", 0.0), ("bool", 20.0), ("open", 0.0), ("open-added", 0.0))
    for padded in (False, True)
]  # fmt: skip

#: Masks that are open over most of the blocks: both loops of the kernel, in every shape of its tiles.
OPEN = [
    Attention(
        make_format("key", 3), make_format("value", 3), dtype, 4, 2, group, rows, 4096, head_dim,
        padded=True, mask=mask, causal=False,
    )
    for head_dim, group, rows, dtype in ((128, 4, 1, F16), (128, 4, 5, BF16), (64, 3, 1, F16), (256, 2, 1, BF16))
    for mask in ("open", "open-added")
]  # fmt: skip

#: Tokens at the front that the program has dropped: in the sinks, in a block, all blocks, in the ring; rolling caches.
HIDDEN = [
    *(
        Attention(
            make_format("key", 3, group_size=16 if head_dim == 80 else 32), make_format("value", 3), dtype, 4, 2, 4,
            rows, 1300, head_dim,
            padded=True, hide=hide, dropped=dropped, mask=mask, causal=not mask.startswith("open"),
        )
        for hide, dropped, mask, head_dim, rows, dtype in (
            (1, 1, "none", 128, 1, F16), (32, 0, "none", 64, 1, BF16), (40, -3, "none", 128, 1, F16),
            (300, 1, "none", 256, 1, F16), (601, 0, "none", 128, 3, F16), (900, 2, "bool", 128, 1, BF16),
            (333, 1, "open", 128, 1, F16), (333, 1, "open-added", 64, 2, F16), (1190, 1, "none", 128, 1, F16),
            (1250, 1, "none", 64, 1, F16), (700, 1, "added", 80, 1, F16), (700, 1, "none", 96, 1, F32),
        )
    ),
    *(
        Attention(
            make_format("key", 3, "rolling", 32, 0, 1000), make_format("value", 3, "rolling", 32, 0, 1000), dtype,
            4, 2, 4, rows, 3000, 128, padded=True, hide=2000, dropped=1, mask=mask, causal=mask == "none",
        )
        for mask, rows, dtype in (("none", 1, BF16), ("none", 3, F16), ("open", 1, F16), ("added", 1, F32))
    ),
]  # fmt: skip

CONFIGS = [
    FieldsConfig(blocks=2, maxnreg=None, programs=8),
    FieldsConfig(stages=2, window_splits=1),
    FieldsConfig(programs=3, window_tokens=32),
    FieldsConfig(num_warps=2, programs=6),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("case", PRESETS[:6:2] + OPEN[:2] + HIDDEN[2:4], ids=lambda case: case.id)
def test_any_configuration_is_the_reference(case, config):
    case.check("cuda", torch.Generator().manual_seed(1), repeat=True, config=config)


@pytest.mark.parametrize("case", MASKED + OPEN + HIDDEN + sampled_fields(40), ids=lambda case: case.id)
def test_attention_from_fields_is_the_reference(case):
    case.check("cuda", torch.Generator().manual_seed(1), repeat=True)


@pytest.mark.parametrize("case", PRESETS + sampled_attentions(SAMPLES), ids=lambda case: case.id)
def test_attention_is_the_reference(case):
    case.check("cuda", torch.Generator().manual_seed(1), repeat=True)


def sides_of(head_dim: int, dtype, index: int):
    modes = itertools.islice(itertools.cycle(CONFIG_MODES), index, None)
    for role, bits in (("key", 2 + index % 7), ("value", 2 + (index + 3) % 7)):
        group = 16 if head_dim == 80 and role == "key" else 32
        yield make_format(
            role, bits, mode_of(role, next(modes)), group, (32, 0, 5)[index % 3], (96, 31, 0)[index % 3], dtype
        )


@pytest.mark.parametrize(
    ("head_dim", "dtype", "index"),
    [(d, t, i) for i, (d, t) in enumerate(itertools.product(HEAD_DIMS, (F16, BF16, F32)))],
    ids=str,
)
def test_caches_are_the_reference(head_dim, dtype, index):
    """Prefill, then appends of one and of several tokens, both sides in one call."""
    batch, heads, tokens = (4, 4, 1100) if index % 2 else (8, 2, 333)
    formats = tuple(sides_of(head_dim, dtype, index))
    start = torch.randint(0, tokens, (batch,), dtype=torch.int32).cuda()
    start[0] = 0
    sides, expected = [], []
    for fmt in formats:
        x = torch.randn(batch, tokens, heads, head_dim).to(dtype).cuda().transpose(1, 2)
        mean = norm = None
        if fmt.is_key:
            mean = torch.randn(batch, heads, head_dim).cuda()
            norm = torch.rand(batch, heads, head_dim).cuda() + 0.5
        capacity = blocks_for(fmt, tokens) + 6
        cache = kernels.prefill(x, start, mean, norm, capacity, fmt)
        # the reference on the CPU: on a GPU torch divides by a constant with its reciprocal
        arguments = (None if t is None else t.cpu() for t in (x, start, mean, norm))
        assert_same_cache(cache, reference.prefill(*arguments, capacity, fmt).map(torch.Tensor.cuda))
        assert_repeatable(lambda x=x, m=mean, n=norm, c=capacity, f=fmt: kernels.prefill(x, start, m, n, c, f))
        sides.append(cache)
        expected.append(clone(cache))
    for count, drop in ((1, 0), (31, 1), (1, 40), (70, 7)):
        new = [torch.randn(batch, count, heads, head_dim).to(dtype).cuda().transpose(1, 2) for _ in formats]
        kernels.append_(tuple(zip(sides, new, strict=True)), drop)
        for cache, other, x in zip(sides, expected, new, strict=True):
            reference.append_(other, x, drop)
            assert_same_cache(cache, other)


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
def test_rolling_caches_are_the_reference(dtype):
    """Prefill, then more tokens than they hold, in appends of one and of several."""
    batch, heads, tokens, head_dim = 4, 2, 333, 80
    formats = (
        make_format("key", 3, "rolling", 16, 0, 320, dtype),
        make_format("value", 3, "rolling", 64, 0, 290, dtype),
    )
    start = torch.tensor([0, 5, 100, 332], dtype=torch.int32).cuda()
    prompts = [torch.randn(batch, heads, tokens, head_dim).to(dtype).cuda() for _ in formats]
    sides = [kernels.prefill(x, start, None, None, 2, fmt) for x, fmt in zip(prompts, formats, strict=True)]
    expected = [
        reference.prefill(x.cpu(), start.cpu(), None, None, 2, fmt).map(torch.Tensor.cuda)
        for x, fmt in zip(prompts, formats, strict=True)
    ]
    for count, drop in ((1, 1), (70, 30), (1, 41), (500, 500)):
        new = [torch.randn(batch, heads, count, head_dim).to(dtype).cuda() for _ in formats]
        kernels.append_(tuple(zip(sides, new, strict=True)), drop)
        for cache, other, x in zip(sides, expected, new, strict=True):
            reference.append_(other, x, drop)
            assert_same_cache(cache, other)


def test_nothing_is_compiled_for_another_number_of_dropped_tokens(monkeypatch):
    """Steps of a sliding window drop none at first, then one: no kernel may be compiled then."""
    compiled = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **_: compiled.append(1))
    case = Attention(make_format("key", 3), make_format("value", 3), F16, 1, 2, 4, 1, 300, 128)
    for portable in (False, True):
        call = (dataclasses.replace(case, k_fmt=make_format("key", 5)) if portable else case).call(
            "cuda", torch.Generator().manual_seed(1)
        )
        new = torch.randn(1, 2, 1, 128, dtype=F16, device="cuda")
        for drop in (0, 1, 2, 16):
            kernels.append_(((call.keys, new), (call.values, new)), drop)
            kernels.decode_attention(dataclasses.replace(call, dropped=drop))
            if drop == 0:
                before = len(compiled)
        assert len(compiled) == before


@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("prompt", [1, 127, 160, 500])
def test_append_continues_prefill_bit_for_bit(role, prompt):
    fmt = make_format(role, 3)
    x = torch.randn(2, 4, 3000, 128, dtype=F16, device="cuda")
    start = torch.zeros(2, dtype=torch.int32, device="cuda")
    capacity = blocks_for(fmt, 3000)
    once = kernels.prefill(x, start, None, None, capacity, fmt)
    steps = kernels.prefill(x[:, :, :prompt], start, None, None, capacity, fmt)
    for first, last in ((prompt, prompt + 1), (prompt + 1, prompt + 200), (prompt + 200, 3000)):
        kernels.append_(((steps, x[:, :, first:last]),))
    assert_same_cache(steps, once, flips=0.0)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_a_cuda_graph_serves_all_lengths(dtype):
    """A step captured once and replayed across flushes; nothing in it waits for the device."""
    batch, heads, group, head_dim, prompt, steps = 2, 2, 4, 128, 150, 70
    formats = tuple(make_format(role, 3, dtype=dtype) for role in ("key", "value"))
    prompts = [torch.randn(batch, heads, prompt, head_dim, device="cuda", dtype=dtype) for _ in formats]
    start = torch.tensor([0, 20], dtype=torch.int32)
    caches = [make_cache(x, fmt, start, room=8) for x, fmt in zip(prompts, formats, strict=True)]
    expected = [clone(cache) for cache in caches]
    query = torch.empty(batch, heads * group, 1, head_dim, device="cuda", dtype=dtype)
    new = [torch.empty(batch, heads, 1, head_dim, device="cuda", dtype=dtype) for _ in formats]

    def call(pair):
        return AttentionCall(query, *pair, None, None, None, head_dim**-0.5, causal=True)

    def step(pair):
        kernels.append_(tuple(zip(pair, new, strict=True)))
        return kernels.decode_attention(call(pair))

    warm = [clone(cache) for cache in caches]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(warm)
        step(warm)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(caches)
    for _ in range(steps):
        query.normal_()
        for x in new:
            x.normal_()
        graph.replay()
        for cache, x in zip(expected, new, strict=True):
            reference.append_(cache, x)
        wanted = reference.decode_attention(call(expected), torch.float64)
        torch.testing.assert_close(out.double(), wanted, rtol=0.02, atol=0.004)
    for cache, other in zip(caches, expected, strict=True):
        assert_same_cache(cache, other)


def test_addresses_beyond_two_to_the_31():
    """Codes and windows of the last head lie beyond 2^31 elements of their tensor."""
    k_fmt, v_fmt = make_format("key", 2, "none", sink=0, recent=0), make_format("value", 2, "none", sink=0, recent=0)
    heads, tokens, head_dim = 136, 1024 * 62, 256
    blocks = tokens // 32
    assert heads * blocks * 32 * head_dim > 2**31
    caches = [reference.empty_cache(fmt, 1, heads, head_dim, blocks + 1, F16, "cuda") for fmt in (k_fmt, v_fmt)]
    tail = torch.randn(2, 1, heads, tokens, head_dim, dtype=F16, device="cuda")[:, :, -2:]
    for cache, y in zip(caches, tail, strict=True):
        cache.state[..., 1:3] = tokens
        cache.codes[:, -2:, :blocks] = y.reshape(1, 2, blocks, -1)
    query = torch.randn(1, heads, 1, head_dim, dtype=F16, device="cuda")
    out = kernels.decode_attention(AttentionCall(query, *caches, None, None, None, 1.0))
    wanted = torch.nn.functional.scaled_dot_product_attention(query[:, -2:], *tail, scale=1.0)
    torch.testing.assert_close(out[:, -2:], wanted, rtol=0.02, atol=0.02)


def test_key_statistics_are_the_reference_s_where_it_is_asked_for(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a kernel of Triton was called")

    monkeypatch.setattr(dispatch, "reference_only", lambda: True)
    monkeypatch.setattr(kernels, "key_statistics", refuse)
    keys, start = torch.randn(2, 2, 300, 64, device="cuda"), torch.tensor([0, 40], dtype=torch.int32, device="cuda")
    found = torch.ops.innerq.key_statistics(keys, start, True, True)
    expected = reference.key_statistics(keys, start, centre=True, normalize=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
