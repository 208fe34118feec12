"""CPU kernels against the reference: the same bits when writing, float64 when attending."""

import dataclasses
import os

import pytest
import torch

from innerq_compile.kernels import cpu, layout, ops, reference  # noqa: F401  (ops registers innerq::*)
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.cache import Cache
from innerq_compile.kernels.cpu import build, codegen, compiled
from innerq_compile.kernels.formats import CacheFormat, blocks_for
from tests.helpers.torch_threads import threads

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no C++ compiler, or INNERQ_CPU_KERNELS=0")

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SINK, RECENT = 4, 40


def pair(key, value, head_dim, value_dim, dtype, scale_dtype, sink=SINK, recent=RECENT):
    """``(key format, value format, head_dim, value_dim, dtype)`` of ``(bits, mode, group_size)`` each."""
    k, v = (CacheFormat(r, *f, sink, recent, scale_dtype) for r, f in (("key", key), ("value", value)))
    return k, v, head_dim, value_dim, dtype


# Every width on both sides, every mode, group sizes above and below a block of 32 tokens, head_dims whose words run
# over, wrap around and divide a vector, and every pair of cache and scale dtype.
PAIRS = {
    "base-D64-f32": pair((3, "signed", 32), (3, "signed", 32), 64, 64, F32, "bfloat16"),
    "4bit-asymmetric-g64-D128-bf16": pair((4, "asymmetric", 64), (4, "asymmetric", 64), 128, 128, BF16, "bfloat16"),
    "2bit-hybrid-D80-f16": pair((2, "hybrid", 16), (2, "hybrid", 32), 80, 80, F16, "float16"),
    "5bit-symmetric-D96-f32": pair((5, "symmetric", 32), (5, "symmetric", 16), 96, 96, F32, "float32"),
    "6bit-g128-D48-f32": pair((6, "signed", 16), (6, "hybrid", 128), 48, 48, F32, "float16"),
    "7bit-D256-Dv160-bf16": pair((7, "asymmetric", 128), (7, "signed", 32), 256, 160, BF16, "float32"),
    "8bit-D16-Dv256-f16": pair((8, "symmetric", 16), (8, "asymmetric", 32), 16, 256, F16, "bfloat16"),
    "2bit-paper-D64-f32": pair((3, "symmetric", 32), (2, "paper_hybrid", 32), 64, 64, F32, "float32"),
    "pair8-hybrid3-hybrid2-D64-f32": pair((3, "hybrid", 32), (2, "hybrid", 16), 64, 64, F32, "pair8"),
    "pair8-asymmetric8-hybrid5-D80-f16": pair((8, "asymmetric", 16), (5, "hybrid", 64), 80, 80, F16, "pair8"),
    "pair8-hybrid3-anchored3-D64-f32": pair((3, "hybrid", 32), (3, "anchored", 32), 64, 64, F32, "pair8"),
    "pair8-anchored2-g16-D80-bf16": pair((2, "asymmetric", 16), (2, "anchored", 16), 80, 80, BF16, "pair8"),
    "steered3-anchored3-D64-f16": pair((3, "steered", 32), (3, "anchored", 32), 64, 64, F16, "pair8"),
    "steered2-g16-D80-bf16": pair((2, "steered", 16), (2, "anchored", 16), 80, 80, BF16, "pair8"),
    "steered5-g64-D192-f32": pair((5, "steered", 64), (5, "anchored", 32), 192, 64, F32, "pair8"),
    "anchored4-g64-D96-f16": pair((4, "asymmetric", 32), (4, "anchored", 64), 96, 96, F16, "float16"),
    "e5m2-signed3-symmetric4-D64-bf16": pair((3, "signed", 32), (4, "symmetric", 32), 64, 64, BF16, "float8_e5m2"),
    "e5m2-symmetric7-signed6-D96-f32": pair((7, "symmetric", 32), (6, "signed", 32), 96, 96, F32, "float8_e5m2"),
    "none-D64-f32": pair((8, "none", 32), (8, "none", 32), 64, 64, F32, "bfloat16"),
    "none-g64-D80-bf16": pair((8, "none", 16), (8, "none", 64), 80, 80, BF16, "bfloat16"),
    "none-2bit-D112-f32": pair((8, "none", 16), (2, "symmetric", 32), 112, 112, F32, "bfloat16"),
}
BASE = PAIRS["base-D64-f32"]
TOLERANCE = {F32: 2e-5, BF16: 1e-2, F16: 1.5e-3}


@pytest.fixture(scope="module", autouse=True)
def compiled_formats():
    cpu.compile_formats([], list(PAIRS.values()))


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def formats(request):
    return request.param


def randn(*shape, dtype=F32):
    return torch.randn(*shape).to(dtype)


def strided(x):
    """The same numbers with the layout that attention layers have, ``[B, N, H, D]``."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def make_caches(formats, lengths, heads=2, capacity_slack=3):
    """Caches of random tokens whose sequences have ``lengths`` real tokens, left-padded to the longest."""
    k_fmt, v_fmt, head_dim, value_dim, dtype = formats
    tokens = max(lengths)
    start = torch.tensor([tokens - n for n in lengths], dtype=torch.int32)
    caches = []
    for fmt, dim in ((k_fmt, head_dim), (v_fmt, value_dim)):
        capacity = blocks_for(fmt, tokens) + capacity_slack
        x = randn(len(lengths), heads, tokens, dim, dtype=dtype)
        caches.append(reference.prefill(x, start, None, None, capacity, fmt))
    return caches


def clone(cache: Cache) -> Cache:
    return cache.map(torch.clone)


def poison(cache: Cache) -> None:
    """Fill all that holds no token: spare blocks with garbage and NaN, unused slots with NaN."""
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    blocks = reference.quantized_blocks(state, fmt)
    spare = torch.arange(codes.shape[2]) >= blocks[..., None]
    codes[spare] = 0x5A5A5A5A if fmt.quantized else float("nan")
    scales[spare] = float("nan") if scales.is_floating_point() else 0x7F  # short scales: large
    slot = torch.arange(fmt.window)
    length, first = state[..., layout.LENGTH, None], (fmt.sink + blocks * fmt.block)[..., None]
    token = torch.where(slot < fmt.sink, slot, first + (slot - first) % fmt.ring)
    window[:, :, : fmt.window][token >= length] = float("nan")


def bits(x):
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def assert_same(cache: Cache, expected: Cache) -> None:
    """Equal bit for bit wherever a cache holds tokens (NaN of any payload equals NaN)."""
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    assert torch.equal(state, expected.state)
    blocks = reference.quantized_blocks(state, fmt)
    held = torch.arange(codes.shape[2]) < blocks[..., None]
    if fmt.quantized:
        assert torch.equal(codes[held], expected.codes[held])
    else:
        assert torch.equal(bits(codes[held]), bits(expected.codes[held]))
    got, want = (s.view(torch.float8_e5m2).float() if s.dtype == torch.uint8 else s for s in (scales, expected.scales))
    got, want = got[held], want[held]
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())
    slot, sink = torch.arange(fmt.window), fmt.sink
    length, first = state[..., layout.LENGTH, None], (fmt.sink + blocks * fmt.block)[..., None]
    token = torch.where(slot < sink, slot, first + (slot - first) % fmt.ring)
    used = token < length
    window, wanted = window[:, :, : fmt.window], expected.window[:, :, : fmt.window]
    assert torch.equal(bits(window[used]), bits(wanted[used]))


def assert_attends(
    formats, caches, query, *, mask=None, causal=False, softcap=0.0, sink_logits=None, scale=None, tolerance=1.0
):
    *_, head_dim, _, dtype = formats
    scale = head_dim**-0.5 if scale is None else scale
    call = AttentionCall(query, *caches, mask, None, sink_logits, scale, softcap, causal)
    assert cpu.supports_decode(call)
    out = cpu.decode_attention(call)
    expected = reference.decode_attention(call, torch.float64)
    assert out.dtype == query.dtype and out.shape == expected.shape and out.is_contiguous()
    limit = TOLERANCE[dtype] * tolerance
    torch.testing.assert_close(out.double(), expected, rtol=limit, atol=limit, equal_nan=True)


# --- writing ----------------------------------------------------------------------------------------------------


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


# --- attention --------------------------------------------------------------------------------------------------


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


# --- around the kernels -----------------------------------------------------------------------------------------


def test_operators_use_the_kernels(monkeypatch):
    used = []
    for name in ("append_", "decode_attention", "prefill"):
        original = getattr(cpu, name)

        def counted(*args, original=original, name=name, **kwargs):
            used.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(cpu, name, counted)
    k_fmt, v_fmt, *_ = BASE
    x, start = randn(1, 2, 100, 64), torch.zeros(1, dtype=torch.int32)
    cache = (
        *torch.ops.innerq.prefill(x, start, None, None, 4, k_fmt.spec),
        *torch.ops.innerq.prefill(x, start, None, None, 4, v_fmt.spec),
    )
    torch.ops.innerq.append_(*cache, x[:, :, :1], x[:, :, :1], k_fmt.spec, v_fmt.spec)
    torch.ops.innerq.append_one_(*cache[:4], x[:, :, :1], k_fmt.spec)
    torch.ops.innerq.decode_attention(x[:, :, :1], *cache, None, None, None, 0.1, 0.0, False, k_fmt.spec, v_fmt.spec)
    assert used == ["prefill", "prefill", "append_", "append_", "decode_attention"]


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


def test_a_toolchain_that_fails_costs_speed_only(monkeypatch, caplog):
    def fail(source):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(build, "load", fail)
    # another test may have compiled the same formats
    for table in ("_sides", "_pairs", "_compiled_sides", "_compiled_pairs"):
        monkeypatch.setattr(compiled, table, {})
    formats = pair((3, "signed", 32), (3, "signed", 32), 32, 32, F32, "bfloat16")
    (k_cache, v_cache), new = make_caches(formats, [100]), randn(1, 2, 1, 32)
    assert not cpu.supports_decode(AttentionCall(new, k_cache, v_cache, None, None, None, 0.1))
    assert not cpu.supports_prefill(formats[0], new)
    cpu.append_(((k_cache, new), (v_cache, new)))
    assert k_cache.state[0, 0, layout.LENGTH] == 101
    assert "no such compiler" in caplog.text


@pytest.mark.parametrize("lanes", [4, 8])
def test_narrower_vectors(lanes, monkeypatch):
    """The code for machines with narrower vectors than this one's."""
    for table in ("_sides", "_pairs", "_compiled_sides", "_compiled_pairs"):
        monkeypatch.setattr(compiled, table, {})
    monkeypatch.setattr(build, "lanes", lambda: lanes)
    chosen = [PAIRS["base-D64-f32"], PAIRS["2bit-hybrid-D80-f16"]]
    cpu.compile_formats([], chosen)
    for formats in chosen:
        *fmts, head_dim, _, dtype = formats
        x, start = randn(2, 2, 333, head_dim, dtype=dtype), torch.tensor([0, 50], dtype=torch.int32)
        caches = [cpu.prefill(x, start, None, None, 12, fmt) for fmt in fmts]
        for cache, fmt in zip(caches, fmts, strict=True):
            assert_same(cache, reference.prefill(x, start, None, None, 12, fmt))
        mask = torch.rand(2, 1, 2, 333) < 0.8
        assert_attends(formats, caches, randn(2, 6, 2, head_dim, dtype=dtype), causal=True, mask=mask, softcap=20.0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_runs_of_a_field_are_its_bits(bits):
    for places, runs in zip(layout.field_bits(bits), codegen.field_runs(bits), strict=True):
        bits_of_runs = [(half, half_bit + i) for half, half_bit, _, mask in runs for i in range(mask.bit_length())]
        assert bits_of_runs == list(places)
