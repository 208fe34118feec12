"""Keys of mode ``steered``: the query profile that a graph gives a cache, and what comes of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from innerq_compile import InnerQConfig, InnerQError, InnerQTensor, empty_cache, innerq
from innerq_compile.kernels import reference
from innerq_compile.kernels.reference import statistics
from tests.helpers.buffer_loop import BufferDecoder
from tests.helpers.models import attended, positions_of, prompt, tiny_llama

TOKENS = 150


def moments(query: torch.Tensor, heads: int, start) -> torch.Tensor:
    """Mean and deviation of the real queries of each key head, written anew: one sequence and one head at a time."""
    out = torch.zeros(query.shape[0], heads, 2, query.shape[3])
    for b in range(query.shape[0]):
        for h, group in enumerate(query[b].float().chunk(heads)):
            x = group[:, start[b] :].reshape(-1, query.shape[3])
            out[b, h, 0], out[b, h, 1] = x.mean(0), x.std(0, correction=0)
    return out


def profile_of(cache: InnerQTensor) -> torch.Tensor:
    return cache.inner_tensors()["query_profile"]


def test_a_profile_has_the_moments_in_units_of_a_group():
    measured = torch.stack((torch.randn(64, 8, 32), torch.rand(64, 8, 32) * 0.2), 2)
    profile = reference.query_profile(measured, None, 32)
    assert profile.shape == measured.shape and profile.dtype == torch.int8
    profile = profile.float()
    assert bool((profile.abs() <= reference.MAX_PROFILE).all()) and float(profile[:, :, 0].min()) < -60
    scale = profile[:, :, 0].abs().amax(-1, keepdim=True) / measured[:, :, 0].abs().amax(-1, keepdim=True)
    torch.testing.assert_close(profile[:, :, 0], measured[:, :, 0] * scale, rtol=0, atol=1.1)


def assert_is_default(profile: torch.Tensor, norm: torch.Tensor) -> None:
    """All channels of the queries count alike, before the normalization; the largest of a group has most."""
    groups = norm.unflatten(-1, (-1, 32 if norm.shape[-1] % 32 == 0 else 16))
    expected = reference.MAX_PROFILE * (groups / groups.amax(-1, keepdim=True)).square().flatten(-2)
    assert bool((profile[:, :, 0] == 0).all())
    torch.testing.assert_close(profile[:, :, 1].float(), expected, rtol=0, atol=0.51)


def assert_profile_is_of(cache: InnerQTensor, query: torch.Tensor, start) -> None:
    """A cache of keys has the profile of ``query``."""
    inner = cache.inner_tensors()
    expected = reference.query_profile(moments(query, cache.shape[1], start), inner["norm"], cache.format.group_size)
    assert int((profile_of(cache).int() - expected.int()).abs().max()) <= 1  # sums in another order


@pytest.mark.sampled(2)
@pytest.mark.parametrize("padding", [(0, 0), (0, 60)], ids=["", "padded"])
@torch.no_grad()
def test_a_prompt_gives_its_cache_a_profile(no_inductor, padding):
    inputs = prompt(2, TOKENS, padding)
    calls = attended(tiny_llama(layers=2), inputs)
    model = innerq(tiny_llama(layers=2))
    cache = model(**inputs, position_ids=positions_of(inputs), use_cache=True).past_key_values
    for (query, key), layer in zip(calls, cache.layers, strict=True):
        assert layer.keys.format.uses_queries
        assert_profile_is_of(layer.keys, query, padding)
        start = torch.tensor(padding, dtype=torch.int32)
        same = InnerQTensor.from_dense(key, "base", role="key", start=start, queries=query)
        torch.testing.assert_close(same.inner_tensors()["norm"], layer.keys.inner_tensors()["norm"])
        assert float((same.dequantize() != layer.keys.dequantize()).float().mean()) < 0.01  # ties


def bmm(q, k, v):
    _, heads, tokens, head_dim = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[1], 1).reshape(-1, tokens, head_dim) for x in (k, v))
    return torch.bmm(torch.bmm(q.reshape(-1, tokens, head_dim), k.mT).softmax(-1), v)


def grouped(q, k, v):
    q = q.unflatten(1, (k.shape[1], -1))
    return (q @ k[:, :, None].mT).softmax(-1) @ v[:, :, None]


def tokens_first(q, k, v):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.einsum("bhns,bshd->bnhd", torch.einsum("bnhd,bshd->bhns", q, k).softmax(-1), v)


def tiled(q, k, v):
    k, v = (x.repeat(1, q.shape[1] // x.shape[1], 1, 1) for x in (k, v))
    return (q @ k.mT).softmax(-1) @ v


@pytest.mark.sampled(4)
@pytest.mark.parametrize("tokens", [64, 65])
@pytest.mark.parametrize("attention", [bmm, grouped, tokens_first, tiled], ids=lambda f: f.__name__)
@torch.no_grad()
def test_queries_of_any_layout(graphs_as_they_are, attention, tokens):
    """Query head i reads key head i // 3 but for ``tiled``, where it is i % 2."""

    def program(q, k, v):
        k, v = k * 1.5, v * 1.5  # a cache is made of what a program computes
        return attention(q, k, v), k, v

    q, k, v = (torch.randn(2, heads, tokens, 32) + torch.arange(heads)[:, None, None] for heads in (6, 2, 2))
    _, cache, _ = torch.compile(program, backend="innerq")(q, k, v)
    assert isinstance(cache, InnerQTensor)
    assert_profile_is_of(cache, q[:, [0, 2, 4, 1, 3, 5]] if attention is tiled else q, (0, 0))


@torch.no_grad()
def test_queries_of_a_batch_that_the_program_doubles(graphs_as_they_are):
    """As with guidance: the batch is no input, but computed from one."""

    def program(q, k, v):
        q, k, v = (torch.cat([x, x * 1.5]) for x in (q, k, v))
        return bmm(q, k, v), k, v

    q, k, v = (torch.randn(3, heads, 64, 32) + torch.arange(heads)[:, None, None] for heads in (6, 2, 2))
    for x in (q, k, v):
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 2)
    _, cache, _ = torch.compile(program, backend="innerq")(q, k, v)
    assert_profile_is_of(cache, torch.cat([q, q * 1.5]), (0,) * 6)


@torch.no_grad()
def test_a_dense_buffer_has_the_default_profile(graphs_as_they_are):
    """The prompt stays dense there; the first decode step quantizes it, and has queries of its own only."""
    model = innerq(tiny_llama())
    out = model.generate(
        **prompt(1, TOKENS), max_new_tokens=3, cache_implementation="static", return_dict_in_generate=True
    )
    buffer = out.past_key_values.layers[0].keys
    shadow = buffer._innerq_shadow
    assert shadow.key.format.uses_queries
    assert_is_default(shadow.key.tensors.query_profile, shadow.key.tensors.norm)


@torch.no_grad()
def test_a_preallocated_cache_takes_the_profile_of_its_prompt(graphs_as_they_are):
    decoder = BufferDecoder(1, heads=2, head_dim=32, where="number")
    buffers = [empty_cache(1, 2, 200, 32, role=role) for role in ("key", "value")]
    x = torch.randn(1, TOKENS, 64)
    torch.compile(decoder, backend="innerq")(x, 0, *buffers)
    query = decoder.qkv[0](x).view(1, TOKENS, 3, 2, 32)[:, :, 0].transpose(1, 2)
    assert_profile_is_of(buffers[0], query, [0])


@torch.no_grad()
def test_a_short_prompt_gives_the_default_profile(graphs_as_they_are):
    cache = innerq(tiny_llama())(**prompt(1, 31), use_cache=True).past_key_values
    keys = cache.layers[0].keys
    assert_is_default(profile_of(keys), torch.ones_like(keys.inner_tensors()["norm"]))


def test_moments_leave_out_what_is_no_query():
    """Padding, infinities and NaN, and tokens whose queries are not there."""
    query, keys = torch.randn(2, 6, 40, 16), torch.randn(2, 2, 90, 16)
    start = torch.tensor([0, 58], dtype=torch.int32)
    expected = torch.stack([moments(query[b : b + 1], 2, [s])[0] for b, s in enumerate((0, 8))])
    torch.testing.assert_close(torch.ops.innerq.query_moments(query, keys, start), expected, rtol=1e-4, atol=1e-5)
    query[0, 3, 7, 5], query[1, 0, 20, 2] = math.inf, math.nan
    found = torch.ops.innerq.query_moments(query, keys, start)
    assert bool(found.isfinite().all())
    group = query[0, 3:, :, 5].reshape(-1).nan_to_num(0, 0, 0)  # they count as zero
    torch.testing.assert_close(found[0, 1, :, 5], torch.stack((group.mean(), group.std(correction=0))))


@pytest.mark.parametrize("tokens", [40, statistics.MOST_QUERIES, statistics.MOST_QUERIES + 60])
@pytest.mark.parametrize("reading", statistics.Reading)
def test_all_ways_to_read_queries_read_the_last_ones(reading, tokens, monkeypatch):
    """A GPU reads others than a CPU."""
    monkeypatch.setattr(statistics, "_reading", lambda query: reading)
    query, keys = torch.randn(2, 4, tokens, 16), torch.randn(2, 2, tokens + 3, 16)
    start = torch.tensor([0, tokens - 36], dtype=torch.int32)
    last = query[:, :, -statistics.MOST_QUERIES :]
    padding = (0, max(0, last.shape[2] - 39))
    expected = torch.stack([moments(last[b : b + 1], 2, [at])[0] for b, at in enumerate(padding)])
    torch.testing.assert_close(reference.query_moments(query, keys, start), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_of_a_long_prompt_the_last_queries_count(graphs_as_they_are):
    """And one graph serves prompts of more and of fewer."""
    start = torch.zeros(1, dtype=torch.int32)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(torch.ops.innerq.query_moments, backend=counter, dynamic=True)
    for tokens in (reference.MOST_QUERIES + 60, 500, reference.MOST_QUERIES, 4200):
        query, keys = torch.randn(1, 4, tokens, 16), torch.randn(1, 2, tokens, 16)
        expected = moments(query[:, :, -reference.MOST_QUERIES :], 2, [0])
        torch.testing.assert_close(compiled(query, keys, start), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_queries_see_less_of_the_errors(bits):
    """Of keys in all directions, by queries that have a mean: less than half of the squared error of the products."""
    torch.manual_seed(0)
    keys, mean = torch.randn(1, 2, 600, 64), torch.randn(1, 2, 1, 64) * 2
    query = mean + torch.randn(1, 2, 600, 64)
    seen = {}
    for mode in ("hybrid", "steered"):
        config = InnerQConfig.preset("base", key_bits=bits, key_mode=mode, sink=0, recent=0)
        held = InnerQTensor.from_dense(keys, config, role="key", queries=query).dequantize()
        seen[mode] = float((query @ (held - keys)[:, :, :576].mT).square().mean())
    assert seen["steered"] < 0.5 * seen["hybrid"]


def test_a_few_queries_have_the_default_moments():
    """A prompt of one token that looks at many keys, as a decoder's at those of an encoder."""
    found = reference.query_moments(
        torch.randn(2, 4, 31, 16), torch.randn(2, 2, 90, 16), torch.zeros(2, dtype=torch.int32)
    )
    assert bool((found[:, :, 0] == 0).all()) and bool((found[:, :, 1] == 1).all())
    none = InnerQTensor.from_dense(torch.randn(0, 2, 90, 32), role="key", queries=torch.randn(0, 4, 90, 32))
    assert none.shape == (0, 2, 90, 32)


def test_huge_queries_leave_keys_as_they_are():
    keys, queries = torch.randn(1, 2, 200, 32), torch.randn(1, 2, 200, 32)
    queries[..., 3] = 1e30
    cache = InnerQTensor.from_dense(keys, "base", role="key", queries=queries)
    assert float((cache.dequantize() - keys).abs().amax()) < 3


def test_a_cache_keeps_its_profile():
    keys, query = torch.randn(2, 2, 200, 32), torch.randn(2, 4, 200, 32) + 1
    cache = InnerQTensor.from_dense(keys, "base", role="key", queries=query)
    profile = profile_of(cache).clone()
    longer = torch.cat([cache, torch.randn(2, 2, 100, 32)], 2)
    for other in (longer, longer[:, :, :120], longer.clone(), longer.to(torch.bfloat16).to(torch.float32)):
        assert torch.equal(profile_of(other), profile)
    chosen = longer.index_select(0, torch.tensor([1, 1]))
    assert torch.equal(profile_of(chosen), profile[[1, 1]])
    assert torch.equal(profile_of(longer.to(torch.bfloat16)), profile)
    cache = cache.clone().zero_()
    assert_is_default(profile_of(cache), cache.inner_tensors()["norm"])


@pytest.mark.parametrize(
    ("role", "shape", "said"),
    [
        ("value", (1, 4, 50, 32), "for values"),
        ("key", (1, 3, 50, 32), "a multiple of 2"),
        ("key", (1, 4, 51, 32), "50"),
    ],
)
def test_queries_that_do_not_fit(role, shape, said):
    with pytest.raises(InnerQError, match=said):
        InnerQTensor.from_dense(torch.randn(1, 2, 50, 32), role=role, queries=torch.randn(shape))
