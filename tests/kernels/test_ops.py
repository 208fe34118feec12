"""The operators ``innerq::*`` as a graph sees them: registration, and attention against exact attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from innerq_compile.kernels import cpu, layout, reference
from innerq_compile.kernels import ops as _ops  # noqa: F401  (defines the innerq:: operators)
from innerq_compile.kernels.attention_call import sinks_by_row
from innerq_compile.kernels.cache import CacheTensors
from innerq_compile.kernels.formats import DTYPES, CacheFormat, blocks_for
from innerq_compile.kernels.schemas import SCHEMAS
from tests.helpers import brute_force
from tests.helpers.strategies import MODES, QUANTIZED_MODES, assert_same_bits, make_format, mode_of, seeds

innerq = torch.ops.innerq
#: Of an attention output against float64, for inputs of about unit size: rounding of the output and of the query.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan():
    """Nothing that an operator allocates and does not write may be read."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def kernels(request, monkeypatch) -> str:
    """Whether a test runs on the plain-torch implementation (the default) or on the kernels of the device too.

    Kernels are compiled for each pair of formats, which takes seconds: only tests that stay with a few formats use
    them here. All their formats are tested in ``tests/kernels/cpu`` and ``tests/kernels/triton``.
    """
    choice = getattr(request, "param", "reference")
    if choice == "reference":
        monkeypatch.setattr(cpu, "available", lambda: False)
    return choice


with_kernels = pytest.mark.parametrize("kernels", ["reference", "device"], indirect=True)


def make_cache(fmt: CacheFormat, x: torch.Tensor, start=None, mean=None, norm=None, room: int = 0):
    """A cache side of ``x [B, H, S, D]`` with room for ``room`` more tokens."""
    start = torch.zeros(x.shape[0], dtype=torch.int32) if start is None else start
    profile = reference.default_profile(fmt, x, norm)
    return innerq.prefill(x, start, mean, norm, blocks_for(fmt, x.shape[2] + room), fmt.spec, profile)


def small_formats(dtype=torch.float32, mode="signed", bits=3):
    window = {"sink": 4, "recent": 8, "dtype": dtype}
    key = make_format("key", bits, mode_of("key", mode), 16, **window)
    return key, make_format("value", bits, mode_of("value", mode), 32, **window)


# --- registration -----------------------------------------------------------------------------------------------


def samples(mode: str, dtype: torch.dtype) -> dict[str, tuple]:
    """Arguments for every operator, over a left-padded batch with two query heads a KV head."""
    k_fmt, v_fmt = small_formats(dtype, mode)
    start = torch.tensor([0, 5], dtype=torch.int32)
    keys, values = torch.randn(2, 2, 90, 32).to(dtype), torch.randn(2, 2, 90, 32).to(dtype)
    mean, norm = reference.key_statistics(keys, start, centre=True, normalize=True)
    k_cache, v_cache = make_cache(k_fmt, keys, start, mean, norm, 64), make_cache(v_fmt, values, start, None, None, 64)
    new_key, new_value = torch.randn(2, 2, 40, 32).to(dtype), torch.randn(2, 2, 40, 32).to(dtype)
    moments = torch.rand(2, 2, 2, 32)
    profile = reference.query_profile(moments, norm, 16) if k_fmt.uses_queries else None
    query = torch.randn(2, 4, 3, 32).to(dtype)
    prompt, shown = torch.randn(2, 4, 90, 32).to(dtype), torch.arange(90) >= start[:, None]
    mask = torch.rand(2, 1, 3, 96) > 0.2
    bias = torch.randn(1, 4, 1, 96).to(dtype)
    formats, token = (k_fmt.spec, v_fmt.spec), torch.randn(1, 1, 32).to(dtype)
    opened = torch.zeros(2, dtype=torch.int32)
    attention = (
        (None, None, None, 0.2, 0.0, False),
        (mask, opened, None, 0.2, 0.0, True),
        (bias, None, torch.randn(4), 0.2, 20.0, True),
    )
    real = torch.arange(96) >= start[:, None, None, None]
    writes = ((k_cache, profile, mean, norm, 90, k_fmt.spec), (v_cache, None, None, None, 50, v_fmt.spec))
    return {
        "query_moments": (
            (torch.randn(2, 4, 90, 32).to(dtype), keys, start),
            (query, keys, start),
            (None, keys, start),
        ),
        "norm_divisor": ((moments, "channel"), (moments, "interleaved16@8")),
        "query_profile": ((moments, norm, 16), (moments, None, 32)),
        "key_statistics": (
            (keys, start, True, True),
            (keys[:, :, :20], start, False, True),
            (keys, start, True, True, "half16", moments[:, :, 1] + 0.5),
        ),
        "prefill": (
            (keys, start, mean, norm, 5, k_fmt.spec, profile),
            (values, start, None, None, 5, v_fmt.spec),
        ),
        "causal_attention": (
            (prompt, keys, values, None, None, None, None, 0.2),
            (prompt, keys, values, shown, shown.all(), 40, torch.randn(4), 0.2),
            (prompt, keys, values, torch.ones_like(shown), torch.tensor(True), None, torch.randn(4), 0.2),
        ),
        "append_": (
            (*k_cache, profile, *v_cache, new_key, new_value, *formats),
            (*k_cache, profile, *v_cache, new_key[:, :, :1], new_value[:, :, :1], *formats),
        ),
        "append_one_": (
            (*k_cache, profile, new_key, k_fmt.spec),
            (*v_cache, None, new_value, v_fmt.spec),
        ),
        "truncate_": ((*k_cache, 50, k_fmt.spec),),
        "rewind_": tuple((*k_cache, *v_cache, torch.tensor([at]), *formats) for at in (90, 50)),
        "write_": (
            *((*cache, *measured, new_key, torch.tensor([at]), spec) for cache, *measured, at, spec in writes),
            (*k_cache, profile, mean, norm, new_key, torch.tensor([0]), k_fmt.spec, moments),
        ),
        "open_from": ((mask & real, k_cache[3], 3), (torch.where(real, bias, -torch.inf), k_cache[3], 1)),
        **dict.fromkeys(
            ("decode_attention", "decode_attention_lse"),
            (
                *((query, *k_cache, *v_cache, *rest, *formats) for rest in attention),
                (query, *k_cache, *v_cache, *attention[0], *formats, 0, None, (1, 1)),
            ),
        ),
        "dequantize": ((*k_cache, mean, norm, 90, k_fmt.spec), (*v_cache, None, None, 70, v_fmt.spec)),
        "row_linear": (
            (token, [torch.randn(8, 32).to(dtype)], [None]),
            (token, [torch.randn(width, 32).to(dtype) for width in (8, 3)], [None, torch.randn(3).to(dtype)]),
        ),
    }


def test_every_operator_has_samples():
    assert set(samples("signed", torch.float32)) == set(SCHEMAS)


def check(name, mode, dtypes):
    for dtype in dtypes:
        for args in samples(mode, dtype)[name]:
            results = opcheck(getattr(innerq, name).default, args)
            assert set(results.values()) == {"SUCCESS"}, results


_OF_QUERIES = ("query_moments", "norm_divisor", "query_profile", "key_statistics", "prefill", "append_one_", "write_")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in SCHEMAS for mode in ("signed", "hybrid", "none")]
    + [(name, "steered") for name in _OF_QUERIES],
)
def test_opcheck(name, mode):
    check(name, mode, (torch.float32, torch.bfloat16))


@pytest.mark.parametrize("kernels", ["device"], indirect=True)
@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck_of_the_kernels(name):
    check(name, "signed", (torch.float32,))


@with_kernels
@pytest.mark.parametrize("name", SCHEMAS)
def test_fake_results_have_the_strides_of_real_ones(name):
    for args in samples("signed", torch.float16)[name]:
        real = getattr(innerq, name)(*args)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = getattr(innerq, name)(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
        if real is None:
            assert fake is None
            continue
        for r, f in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (real, fake)), strict=True):
            assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())


def test_operators_on_meta_tensors():
    fmt = make_format()
    cache = innerq.prefill(
        torch.empty(2, 8, 4096, 128, device="meta"), torch.empty(2, device="meta"), None, None, 124, fmt.spec
    )
    assert sum(t.nbytes for t in cache) == layout.cache_bytes(fmt, 2, 8, 128, torch.float32, 124)


# --- caches -----------------------------------------------------------------------------------------------------


def clone(cache):
    return tuple(t.clone() for t in cache)


@pytest.mark.parametrize("kernels", ["device"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["signed", "none"])
def test_cache_operators_are_the_reference(mode, dtype):
    """The bits of the storage are the reference's, whatever kernel a device has."""
    start = torch.tensor([0, 7], dtype=torch.int32)
    for fmt in small_formats(dtype, mode, bits=3):
        x = (torch.randn(2, 2, 160, 32) * 2).to(dtype)
        mean = norm = None
        if fmt.is_key:
            mean, norm = innerq.key_statistics(x, start, True, True)
            for ours, theirs in zip(
                (mean, norm), reference.key_statistics(x, start, centre=True, normalize=True), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        capacity = blocks_for(fmt, 260)
        cache = innerq.prefill(x, start, mean, norm, capacity, fmt.spec)
        expected = reference.prefill(x, start, mean, norm, capacity, fmt)
        assert_same_bits(cache[3], expected.state)
        for length in (160, 100):
            assert_same_bits(
                innerq.dequantize(*cache, mean, norm, length, fmt.spec),
                reference.dequantize(expected, length),
            )
        cache = clone(expected.encoded)
        for count in (1, 30, 1, 68):
            new = torch.randn(2, 2, count, 32).to(dtype)
            innerq.append_one_(*cache, None, new, fmt.spec)
            reference.append_(expected, new)
            for ours, theirs in zip(cache, expected.encoded, strict=True):
                assert_same_bits(ours, theirs)
        innerq.truncate_(*cache, 90, fmt.spec)
        reference.truncate_(expected, 90)
        for ours, theirs in zip(cache, expected.encoded, strict=True):
            assert_same_bits(ours, theirs)


@with_kernels
def test_encoding_without_the_query_profile_that_the_mode_uses_is_an_error():
    fmt, _ = small_formats(mode="steered")
    x, start = torch.randn(1, 2, 90, 32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="its query profile"):
        innerq.prefill(x, start, None, None, 8, fmt.spec)
    with pytest.raises(ValueError, match="its query profile"):
        innerq.append_one_(*make_cache(fmt, x, room=90), None, x, fmt.spec)


@with_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_append_writes_both_sides(dtype):
    k_fmt, v_fmt = small_formats(dtype)
    keys, values = torch.randn(2, 2, 30, 32).to(dtype), torch.randn(2, 2, 30, 32).to(dtype)
    k_cache, v_cache = make_cache(k_fmt, keys, room=60), make_cache(v_fmt, values, room=60)
    k_expected = CacheTensors.of_encoded(k_fmt, clone(k_cache))
    v_expected = CacheTensors.of_encoded(v_fmt, clone(v_cache))
    for _ in range(3):
        key, value = torch.randn(2, 2, 20, 32).to(dtype), torch.randn(2, 2, 20, 32).to(dtype)
        innerq.append_(*k_cache, None, *v_cache, key, value, k_fmt.spec, v_fmt.spec)
        reference.append_(k_expected, key)
        reference.append_(v_expected, value)
    for ours, theirs in zip((*k_cache, *v_cache), (*k_expected, *v_expected), strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("position", [torch.tensor(41), torch.tensor([41], dtype=torch.int32)])
def test_rewind_truncates_both_sides_to_a_length_on_the_device(position):
    formats = small_formats()
    start = torch.tensor([0, 5], dtype=torch.int32)
    caches = [make_cache(fmt, torch.randn(2, 2, 90, 32), start) for fmt in formats]
    expected = [clone(cache) for cache in caches]
    specs = [fmt.spec for fmt in formats]
    innerq.rewind_(*caches[0], *caches[1], torch.tensor(90), *specs)
    for ours, theirs in zip((*caches[0], *caches[1]), (*expected[0], *expected[1]), strict=True):
        assert_same_bits(ours, theirs)
    innerq.rewind_(*caches[0], *caches[1], position, *specs)
    for cache, fmt in zip(expected, formats, strict=True):
        innerq.truncate_(*cache, 41, fmt.spec)
    for ours, theirs in zip((*caches[0], *caches[1]), (*expected[0], *expected[1]), strict=True):
        assert_same_bits(ours, theirs)
    with pytest.raises(RuntimeError, match="position 60, length 41"):
        innerq.rewind_(*caches[0], *caches[1], torch.tensor(60), *specs)


# --- attention --------------------------------------------------------------------------------------------------


def exact_attention(
    query, k_cache, v_cache, k_fmt, v_fmt, *, mask, scale, causal, softcap, sink_logits, value_heads=None
):
    """Float64 loops over what the caches hold."""
    batch, q_heads, rows, _ = query.shape
    state = k_cache[3]
    start, length = state[:, 0, layout.START].tolist(), state[:, 0, layout.LENGTH].tolist()
    longest = max(length)
    keys = reference.real_tokens(CacheTensors.of_encoded(k_fmt, k_cache), longest, torch.float64).numpy()
    values = reference.real_tokens(CacheTensors.of_encoded(v_fmt, v_cache), longest, torch.float64).numpy()
    heads = keys.shape[1]
    full = None if mask is None else mask.expand(batch, q_heads, rows, mask.shape[-1])
    out = np.empty((batch, q_heads, rows, values.shape[-1]))
    for b, h, i in np.ndindex(batch, q_heads, rows):
        kv_head, count = h // (q_heads // heads), length[b]
        value_head = kv_head if value_heads is None else value_heads[0] + kv_head % value_heads[1]
        visible = np.ones(count, dtype=bool)
        if causal:
            visible[max(0, count - rows + i + 1) :] = False
        bias = None
        if full is not None:
            row = full[b, h, i, start[b] : start[b] + count]
            if mask.dtype == torch.bool:
                visible &= row.numpy()
            else:
                bias = row.double().numpy()
        out[b, h, i] = brute_force.attention(
            query[b, h, i].double().numpy(),
            keys[b, kv_head, :count],
            values[b, value_head, :count],
            scale=scale,
            visible=visible,
            bias=bias,
            softcap=softcap,
            sink_logit=None if sink_logits is None else float(sinks_by_row(sink_logits, query)[b, h, i]),
        )
    return torch.from_numpy(out)


@st.composite
def attentions(draw):
    dtype = draw(st.sampled_from(DTYPES))
    mode = draw(st.sampled_from([*MODES]))
    k_fmt, v_fmt = small_formats(dtype, mode, draw(st.integers(2, 8)))
    rows = draw(st.sampled_from([1, 1, 2, 5]))
    tokens = draw(st.integers(rows, 150))
    return {
        "dtype": dtype,
        "formats": (k_fmt, v_fmt),
        "rows": rows,
        "tokens": tokens,
        "start": draw(st.lists(st.integers(0, tokens - rows), min_size=2, max_size=2)),
        "groups": draw(st.sampled_from([1, 3, 4])),
        "head_dims": draw(st.sampled_from([(32, 32), (80, 80), (64, 32)])),
        "mask": draw(st.sampled_from([None, "bool", "additive", "longer"])),
        "causal": draw(st.booleans()),
        "softcap": draw(st.sampled_from([0.0, 0.0, 5.0])),
        "sink_logits": draw(st.sampled_from([None, "by head", "by row"])),
        "value_heads": draw(st.sampled_from([None, None, (0, 1), (1, 1), (0, 2)])),
    }


@given(attentions(), seeds)
def test_attention_is_exact_attention_over_the_cache(case, seed):
    torch.manual_seed(seed)
    dtype, (k_fmt, v_fmt), rows, tokens = case["dtype"], case["formats"], case["rows"], case["tokens"]
    key_dim, value_dim = case["head_dims"]
    start = torch.tensor(case["start"], dtype=torch.int32)
    k_cache = make_cache(k_fmt, torch.randn(2, 2, tokens, key_dim).to(dtype), start)
    v_cache = make_cache(v_fmt, torch.randn(2, 2, tokens, value_dim).to(dtype), start)
    query = torch.randn(2, 2 * case["groups"], rows, key_dim).to(dtype)
    mask = None
    if case["mask"] == "bool":
        mask = torch.rand(2, 1, rows, tokens) > 0.5
    elif case["mask"] == "additive":
        mask = torch.where(torch.rand(1, query.shape[1], rows, tokens) > 0.5, 1.0, -200.0).to(dtype)
    elif case["mask"] == "longer":  # of a buffer with more positions than tokens
        mask = torch.rand(2, 1, 1, tokens + 9) > 0.3
    sizes = {"by head": query.shape[1:2], "by row": query.shape[:3]}
    sink_logits = torch.randn(sizes[case["sink_logits"]]) if case["sink_logits"] else None
    options = {"scale": key_dim**-0.5, "softcap": case["softcap"], "causal": case["causal"]}
    out = innerq.decode_attention(
        *(query, *k_cache, *v_cache, mask, None, sink_logits, *options.values(), k_fmt.spec, v_fmt.spec),
        *(0, None, case["value_heads"]),
    )
    options["value_heads"] = case["value_heads"]
    assert out.dtype == dtype and out.shape == (2, query.shape[1], rows, value_dim)
    expected = exact_attention(query, k_cache, v_cache, k_fmt, v_fmt, mask=mask, sink_logits=sink_logits, **options)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[dtype])


def attend(query, k_cache, v_cache, k_fmt, v_fmt, mask=None, causal=False, sink_logits=None):
    scale = query.shape[-1] ** -0.5
    specs = k_fmt.spec, v_fmt.spec
    return innerq.decode_attention(query, *k_cache, *v_cache, mask, None, sink_logits, scale, 0.0, causal, *specs)


@pytest.mark.parametrize("mode", ["none", *QUANTIZED_MODES])
def test_attention_is_sdpa_over_the_dequantized_cache(mode):
    """The whole of the method: statistics folded into the query, attention over the cache, against torch's own."""
    k_fmt, v_fmt = small_formats(torch.float32, mode)
    keys, values = torch.randn(2, 2, 120, 64) + 3 * torch.randn(2, 2, 1, 64), torch.randn(2, 2, 120, 64)
    start = torch.zeros(2, dtype=torch.int32)
    mean, norm = innerq.key_statistics(keys, start, True, True)
    k_cache, v_cache = make_cache(k_fmt, keys, start, mean, norm), make_cache(v_fmt, values, start)
    query = torch.randn(2, 4, 1, 64)
    out = attend(query * norm.repeat_interleave(2, 1)[:, :, None], k_cache, v_cache, k_fmt, v_fmt)
    dense = [
        innerq.dequantize(*cache, *stats, 120, fmt.spec).repeat_interleave(2, 1)
        for cache, stats, fmt in ((k_cache, (mean, norm), k_fmt), (v_cache, (None, None), v_fmt))
    ]
    expected = torch.nn.functional.scaled_dot_product_attention(query.double(), *(t.double() for t in dense))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-5)
    if mode == "none":
        torch.testing.assert_close(dense[0], keys.repeat_interleave(2, 1), rtol=1e-5, atol=1e-5)


@with_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fill", [False, -math.inf])
def test_a_row_that_sees_nothing_is_zero(dtype, fill):
    k_fmt, v_fmt = small_formats(dtype)
    x = torch.randn(1, 1, 60, 32).to(dtype)
    k_cache, v_cache = make_cache(k_fmt, x), make_cache(v_fmt, x)
    mask = torch.zeros(1, 1, 2, 60, dtype=dtype) if fill else torch.ones(1, 1, 2, 60, dtype=torch.bool)
    mask[:, :, 0] = fill
    query = torch.randn(1, 2, 2, 32).to(dtype)
    for sink_logits in (None, torch.randn(2)):
        out = attend(query, k_cache, v_cache, k_fmt, v_fmt, mask, sink_logits=sink_logits)
        assert bool((out[:, :, 0] == 0).all())
        assert bool((out[:, :, 1] != 0).any())


@with_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("token", [1, 20, 78], ids=["sink", "quantized", "recent"])
def test_broken_numbers_stay_where_eager_has_them(dtype, broken, token):
    """One NaN or infinity in one head of one sequence: every other head and sequence is untouched."""
    k_fmt, v_fmt = small_formats(dtype)
    keys, values = torch.randn(2, 2, 80, 32).to(dtype), torch.randn(2, 2, 80, 32).to(dtype)
    query = torch.randn(2, 4, 1, 32).to(dtype)
    clean = attend(query, make_cache(k_fmt, keys), make_cache(v_fmt, values), k_fmt, v_fmt)

    spoiled = keys.clone()
    spoiled[0, 1, token, 3] = broken
    out = attend(query, make_cache(k_fmt, spoiled), make_cache(v_fmt, values), k_fmt, v_fmt)
    others = torch.ones(2, 4, dtype=torch.bool)
    others[0, 2:] = False
    assert torch.equal(out[others], clean[others])
    if math.isnan(broken):
        assert bool(out[0, 2:].isnan().all())

    spoiled = values.clone()
    spoiled[0, 1, token, 3] = broken
    out = attend(query, make_cache(k_fmt, keys), make_cache(v_fmt, spoiled), k_fmt, v_fmt)
    channels = torch.arange(32) != 3
    assert torch.equal(out[others], clean[others])
    torch.testing.assert_close(out[..., channels], clean[..., channels], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("mode", QUANTIZED_MODES)
def test_extreme_groups_attend_without_nan(mode):
    """All-zero, constant, huge and subnormal keys and values."""
    for dtype in DTYPES:
        k_fmt, v_fmt = small_formats(dtype, mode)
        finfo = torch.finfo(dtype)
        largest = min(finfo.max, torch.finfo(torch.float32).max)  # scales have no larger range
        for fill in (0.0, 1.0, largest**0.5, finfo.smallest_normal * finfo.eps):
            x = torch.full((1, 1, 80, 32), fill, dtype=torch.float64).to(dtype)
            query = torch.randn(1, 2, 1, 32).to(dtype)
            out = attend(query, make_cache(k_fmt, x), make_cache(v_fmt, x), k_fmt, v_fmt)
            assert bool(out.isfinite().all())
            torch.testing.assert_close(out, x[:, :, :1].expand_as(out), rtol=1e-2, atol=finfo.smallest_normal)


@with_kernels
@pytest.mark.parametrize("sink", [0, 4])
def test_decode_step_by_step(sink):
    """Append one token, attend, many times over; lossless, it is SDPA over everything seen so far."""
    formats = [make_format(role, mode="none", sink=sink, recent=8, dtype=torch.float32) for role in ("key", "value")]
    keys, values = torch.randn(2, 1, 100, 32), torch.randn(2, 1, 100, 32)
    caches = [make_cache(fmt, x[:, :, :3], room=97) for fmt, x in zip(formats, (keys, values), strict=True)]
    for t in range(3, 100):
        innerq.append_(
            *caches[0], None, *caches[1], keys[:, :, t : t + 1], values[:, :, t : t + 1], *(f.spec for f in formats)
        )
        query = torch.randn(2, 2, 1, 32)
        out = attend(query, *caches, *formats)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, keys[:, :, : t + 1], values[:, :, : t + 1], enable_gqa=True
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
