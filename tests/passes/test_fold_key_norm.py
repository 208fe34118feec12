"""Where the key normalization stands: graphs, every spelling of a rotary embedding, and what must not be folded."""

from __future__ import annotations

import dataclasses
import re

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import InnerQConfig, InnerQTensor
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.kernels.internals.dynamo_graphs import copy_graph
from innerq_compile.passes import PIPELINE, PassContext
from tests.helpers.programs import capture, changes_by_pass

D, ROTARY = 32, 16
# a cache made of a dense tensor knows nothing of the queries, which `hybrid` does not ask for
BASE = InnerQConfig.preset("base", sink=2, recent=4, key_norm="pair", key_mode="hybrid")


def rotate_half(x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def half(x, angle):
    angle = torch.cat((angle, angle), -1)
    return x * angle.cos() + rotate_half(x) * angle.sin()


def half_by_chunks(x, angle):
    a, b = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def interleaved(x, angle):
    angle = angle.repeat_interleave(2, -1)
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return (x.float() * angle.cos() + turned.float() * angle.sin()).to(x.dtype)


def interleaved_by_unbind(x, angle):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)


def by_complex_numbers(x, angle):
    turned = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(turned * torch.polar(torch.ones_like(angle), angle)).flatten(3).type_as(x)


def partial_half(x, angle):
    return torch.cat((half(x[..., :ROTARY], angle[..., : ROTARY // 2]), x[..., ROTARY:]), dim=-1)


def partial_interleaved_at_the_end(x, angle):
    rest, turned = x.split([D - ROTARY, ROTARY], dim=-1)
    return torch.cat((rest, interleaved(turned, angle[..., : ROTARY // 2])), dim=-1)


def none(x, angle):
    return x


def shifted(x, angle):
    return half(x, angle) + 1.0


def normalized_behind(x, angle):
    return F.rms_norm(half(x, angle), (D,))


def three_at_once(x, angle):
    return half(half_by_chunks(x, angle), angle) + x.roll(1, -1)


ROPES = {  # rotary embedding: the channels that share a normalization
    half: "half32",
    half_by_chunks: "half32",
    interleaved: "interleaved32",
    interleaved_by_unbind: "interleaved32",
    by_complex_numbers: "interleaved32",
    partial_half: "half16",
    partial_interleaved_at_the_end: "interleaved16@16",
    none: "channel",
}


class Attention(nn.Module):
    """An attention layer with a rotary embedding and a cache that is a pair of tensors."""

    def __init__(self, rope, norm: bool = False, fused: bool = False, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.rope, self.heads, self.kv_heads, self.fused = rope, heads, kv_heads, fused
        self.qkv = nn.Linear(16, (heads + 2 * kv_heads) * D)
        self.norms = nn.ModuleList([nn.RMSNorm(D) if norm else nn.Identity() for _ in range(2)])
        self.tell = False

    def forward(self, x, angle, past=None):
        batch, tokens, _ = x.shape
        if self.fused:
            qkv, ends = self.qkv(x), (self.heads * D, (self.heads + self.kv_heads) * D)
            parts = qkv[..., : ends[0]], qkv[..., ends[0] : ends[1]], qkv[..., ends[1] :]
            parts = [part.reshape(batch, tokens, -1, D) for part in parts]
        else:
            weights = self.qkv.weight.split([self.heads * D, self.kv_heads * D, self.kv_heads * D])
            parts = [F.linear(x, weight).view(batch, tokens, -1, D) for weight in weights]
        q, k, v = (part.transpose(1, 2) for part in parts)
        q, k = self.norms[0](q), self.norms[1](k)
        before = q
        q, k = self.rope(q, angle), self.rope(k, angle)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=past is None, enable_gqa=True)
        return (out + before if self.tell else out), (k, v)


def calls(tokens: int = 40, steps: int = 2, batch: int = 2):
    """Arguments for a prompt and the steps behind it."""
    angles = torch.arange(tokens + steps)[:, None] * 0.5 ** torch.arange(D // 2)

    def step(index):
        return lambda last: (torch.randn(batch, 1, 16), angles[tokens + index][None], last[1])

    return [lambda _: (torch.randn(batch, tokens, 16), angles[:tokens]), *map(step, range(steps))]


def places(model, config: InnerQConfig = BASE, **sizes):
    """Where the norm stands in the decode graph, query and key, and the norm of the prefill's keys."""
    found = []
    for gm, _ in capture(model, *calls(**sizes), config=config):
        context = PassContext(config)
        PIPELINE.run(copy_graph(gm), context)
        keys = [quantized.format.norm for quantized in context.quantized.values() if quantized.format.is_key]
        found.append((context, keys))
    context = found[-1][0]
    norms = context.norm_places[context.rewritten[0]]
    return norms.query, norms.key, found[0][1][0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize(("rope", "shared"), ROPES.items(), ids=lambda x: getattr(x, "__name__", x))
def test_every_rotary_embedding_is_folded(graphs_as_they_are, rope, shared, norm, fused):
    query, key, prefill = places(Attention(rope, norm, fused))
    assert (query.site.value, key.site.value, prefill) == ("projection", "projection", shared), (query, key)


def test_one_sequence_and_one_head(graphs_as_they_are):
    query, key, prefill = places(Attention(half, heads=1, kv_heads=1), batch=1)
    assert (query.site.value, key.site.value, prefill) == ("projection", "projection", "half32")


@pytest.mark.parametrize("rope", [shifted, normalized_behind, three_at_once], ids=lambda rope: rope.__name__)
def test_what_is_not_understood_stays_behind_it(graphs_as_they_are, rope):
    model = Attention(rope)
    query, key, prefill = places(model)
    if rope is not normalized_behind:  # the factor stands on the normalization, which is behind the rotary embedding
        assert (query.site.value, key.site.value) == ("after rotary", "after rotary") and query.reason and key.reason
    assert prefill == "channel"
    check_numbers(model, BASE)


def test_a_query_that_something_else_reads(graphs_as_they_are):
    model = Attention(half)
    model.tell = True
    query, key, _ = places(model)
    assert (query.site.value, key.site.value) == ("after rotary", "projection")
    check_numbers(model, BASE)


@pytest.mark.parametrize("key_norm", ["channel", "paper"])
def test_a_normalization_by_channel_stays_behind_the_rotary_embedding(graphs_as_they_are, key_norm):
    query, key, prefill = places(Attention(half), dataclasses.replace(BASE, key_norm=key_norm))
    assert (query.site.value, key.site.value, prefill) == ("after rotary", "after rotary", key_norm)
    assert query.reason == (
        "the rotary embedding mixes channels by half32, but the channels of the cache share their normalization by "
        f"{key_norm}"
    )


def test_no_normalization(graphs_as_they_are):
    query, key, prefill = places(Attention(half), dataclasses.replace(BASE, normalize_keys=False))
    assert (query.site.value, key.site.value, prefill) == ("none", "none", "channel")


@pytest.mark.parametrize("norm", ["channel", "interleaved32", "half16"])
@torch.no_grad()
def test_a_cache_whose_channels_share_otherwise(graphs_as_they_are, norm):
    """The graph looks at the cache that it gets, whatever its own prefill would have made."""
    model = Attention(half)
    compiled = torch.compile(model, backend="innerq", options={"sink": 2, "recent": 4, "key_mode": "hybrid"})
    check_step(model, compiled, norm, BASE)


# --- numbers --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_numbers(model, config: InnerQConfig) -> None:
    """Compiled prompt and steps against the same program on caches that dequantize, with statistics shared alike."""
    torch._dynamo.reset()
    options = {name: getattr(config, name) for name in config.__dataclass_fields__}
    compiled = torch.compile(model, backend="innerq", options=options)
    past = reference = None
    for index, call in enumerate(calls(tokens=50, steps=12)):
        arguments = call((None, past))
        out, past = compiled(*arguments)
        expected, reference = model(*arguments[:2], reference)
        if index == 0:
            norm = past[0].format.norm
            reference = (
                InnerQTensor.from_dense(reference[0], config, role="key", norm=norm),
                InnerQTensor.from_dense(reference[1], config, role="value"),
            )
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=2e-4)


def check_step(model, compiled, norm: str, config: InnerQConfig) -> None:
    torch._dynamo.reset()
    _, (keys, values) = model(*calls(50)[0](None))
    keys = keys * torch.rand(D) * 3  # normalizations that differ
    make = [
        (
            InnerQTensor.from_dense(keys, config, role="key", norm=norm),
            InnerQTensor.from_dense(values, config, role="value"),
        )
        for _ in range(2)
    ]
    arguments = calls(50)[1]((None, None))[:2]
    out, past = compiled(*arguments, make[0])
    expected, reference = model(*arguments, make[1])
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(past[0].dequantize(), reference[0].dequantize(), rtol=1e-3, atol=1e-3)
    for same in (past[0].clone(), past[0][:, :, :20], past[0].to(torch.float64).to(torch.float32)[:0]):
        assert not isinstance(same, InnerQTensor) or same.format.norm == norm


@pytest.mark.sampled(3)
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.__name__)
def test_numbers(graphs_as_they_are, rope, norm):
    check_numbers(Attention(rope, norm), BASE)


@pytest.mark.parametrize("tokens", [5, 31])
def test_short_prompts_have_no_statistics(graphs_as_they_are, tokens):
    """Mean 0 and normalization 1; the graph is the same."""
    torch._dynamo.reset()
    model = Attention(half)
    with torch.no_grad():
        _, past = torch.compile(model, backend="innerq", options={"key_norm": "pair"})(*calls(tokens)[0](None))
    inner = past[0].inner_tensors()
    assert past[0].format.norm == "half32"
    assert not inner["mean"].any() and bool((inner["norm"] == 1).all())


# --- code -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def kernels(config: InnerQConfig, norm: str | None) -> list[str]:
    """The kernels and operators that Inductor's code for a decode step calls, in order."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    model = Attention(half, norm=True)

    def backend(gm, example_inputs):
        options = {name: getattr(config, name) for name in config.__dataclass_fields__}
        return innerq_backend(gm, example_inputs, options=options)

    _, (keys, values) = model(*calls(40)[0](None))
    past = (
        InnerQTensor.from_dense(keys, config, role="key", norm=norm),
        InnerQTensor.from_dense(values, config, role="value"),
    )
    x, angle, _ = calls(40)[1]((None, None))
    _, codes = run_and_get_code(torch.compile(model, backend=backend), x, angle, past)
    body = "\n".join(codes)
    body = body[body.index("def call(") :]
    return re.findall(r"\b(cpp_fused\w*|extern_kernels\.\w+|torch\.ops\.innerq\.\w+)(?:\.default)?\(", body)


def test_the_normalization_is_no_kernel_of_its_own():
    with_norm = kernels(BASE, "half32")
    without = kernels(dataclasses.replace(BASE, centre_keys=False, normalize_keys=False), None)
    assert any("innerq.decode_attention" in name for name in without)
    assert len(with_norm) == len(without), (with_norm, without)


# --- graphs ---------------------------------------------------------------------------------------------------------


class TestGraphs(expecttest.TestCase):
    def check(self, rope) -> str:
        torch.manual_seed(0)
        graphs = capture(Attention(rope), *calls(steps=1, batch=1), config=BASE)
        return changes_by_pass(graphs[-1][0], BASE)["fold_key_norm"]

    def test_rotate_half(self):
        self.assertExpectedInline(
            self.check(half),
            """\
+ to_4 = part.to(torch.float32)
+ repeat_interleave = l_past_0__norm.repeat_interleave(2, 1)
+ unsqueeze_2 = repeat_interleave.unsqueeze(1)
+ mul_4 = to_4 * unsqueeze_2
+ to_5 = mul_4.to(torch.float32)
+ to = part_1.to(torch.float32)
+ unsqueeze = l_past_0__norm.unsqueeze(1)
+ truediv = to / unsqueeze
+ to_1 = truediv.to(torch.float32)
- q = part.transpose(1, 2)
+ q = to_5.transpose(1, 2)
- k = part_1.transpose(1, 2)
+ k = to_1.transpose(1, 2)
+ truediv_1 = l_past_0__mean / l_past_0__norm
+ to_2 = k_1.to(torch.float32)
+ unsqueeze_1 = truediv_1.unsqueeze(2)
+ sub = to_2 - unsqueeze_1
+ to_3 = sub.to(torch.float32)
- append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, None, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, k_1, v, 'key:3:hybrid:32:2:4:pair8:half32', 'value:3:anchored:32:2:4:pair8')
+ append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, None, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, to_3, v, 'key:3:hybrid:32:2:4:pair8:half32', 'value:3:anchored:32:2:4:pair8')""",
        )

    def test_without_a_rotary_embedding(self):
        self.assertExpectedInline(
            self.check(none),
            """\
+ to_4 = part.to(torch.float32)
+ repeat_interleave = l_past_0__norm.repeat_interleave(2, 1)
+ unsqueeze_2 = repeat_interleave.unsqueeze(1)
+ mul = to_4 * unsqueeze_2
+ to_5 = mul.to(torch.float32)
+ to = part_1.to(torch.float32)
+ unsqueeze = l_past_0__norm.unsqueeze(1)
+ truediv = to / unsqueeze
+ to_1 = truediv.to(torch.float32)
- q = part.transpose(1, 2)
+ q = to_5.transpose(1, 2)
- k = part_1.transpose(1, 2)
+ k = to_1.transpose(1, 2)
+ truediv_1 = l_past_0__mean / l_past_0__norm
+ to_2 = k.to(torch.float32)
+ unsqueeze_1 = truediv_1.unsqueeze(2)
+ sub = to_2 - unsqueeze_1
+ to_3 = sub.to(torch.float32)
- append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, None, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, k, v, 'key:3:hybrid:32:2:4:pair8', 'value:3:anchored:32:2:4:pair8')
+ append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, None, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, to_3, v, 'key:3:hybrid:32:2:4:pair8', 'value:3:anchored:32:2:4:pair8')""",
        )

    def test_behind_a_rotary_embedding_that_is_not_understood(self):
        self.assertExpectedInline(
            self.check(shifted),
            """\
+ to = k_1.to(torch.float32)
+ unsqueeze = l_past_0__mean.unsqueeze(2)
+ sub = to - unsqueeze
+ unsqueeze_1 = l_past_0__norm.unsqueeze(2)
+ truediv = sub / unsqueeze_1
+ to_1 = truediv.to(torch.float32)
- append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, None, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, k_1, v, 'key:3:hybrid:32:2:4:pair8', 'value:3:anchored:32:2:4:pair8')
+ append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, None, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, to_1, v, 'key:3:hybrid:32:2:4:pair8', 'value:3:anchored:32:2:4:pair8')
+ to_2 = q_1.to(torch.float32)
+ repeat_interleave = l_past_0__norm.repeat_interleave(2, 1)
+ unsqueeze_2 = repeat_interleave.unsqueeze(2)
+ mul_4 = to_2 * unsqueeze_2
+ to_3 = mul_4.to(torch.float32)
- decode_attention_default = torch.ops.innerq.decode_attention.default(q_1, l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, None, None, None, 0.17677669529663687, 0.0, False, 'key:3:hybrid:32:2:4:pair8', 'value:3:anchored:32:2:4:pair8')
+ decode_attention_default = torch.ops.innerq.decode_attention.default(to_3, l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, None, None, None, 0.17677669529663687, 0.0, False, 'key:3:hybrid:32:2:4:pair8', 'value:3:anchored:32:2:4:pair8')""",
        )


def _twice(base, k, v, past_k, past_v):
    query = base.transpose(1, 2)
    keys, values = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    first = F.scaled_dot_product_attention(query, keys, values)
    base.mul_(3)
    return first, F.scaled_dot_product_attention(query, keys, values), keys, values


def test_a_query_that_changes_between_two_attentions(graphs_as_they_are):
    found = []
    for rewrite in (True, False):
        torch.manual_seed(0)
        torch._dynamo.reset()
        loud = 1 + 4 * torch.rand(D)  # without a difference between channels there is no normalization
        step = torch.compile(_twice, backend=innerq_backend, options={"preset": "base", "rewrite": rewrite})
        with torch.no_grad():
            caches = [torch.empty(2, 2, 0, D)] * 2
            for tokens in (200, 1):
                new = torch.randn(2, tokens, 2, D), torch.randn(2, 2, tokens, D) * loud, torch.randn(2, 2, tokens, D)
                *outs, keys, values = step(*new, *caches)
                caches = [keys, values]
        found.append(outs)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(*found[0], atol=0.1)
