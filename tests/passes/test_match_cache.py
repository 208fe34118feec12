"""Where keys and values of an attention come from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQConfig, empty_cache
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.context import CacheSource
from tests.helpers.programs import BufferAttention, LateTransposing, TinyAttention, capture

pytestmark = pytest.mark.usefixtures("no_inductor")

CONFIG = InnerQConfig.preset("base")


def prompt(_):
    return (torch.randn(1, 5, 32),)


def step(last):
    return torch.randn(1, 1, 32), last[1]


def context_of(program, *calls):
    return PIPELINE.rewrite(capture(program, *calls, config=CONFIG)[-1][0], CONFIG).context


class Reads(TinyAttention):
    """Attends to the cached tokens, and appends none."""

    def forward(self, x, past=None):
        if past is None:
            return super().forward(x)
        q = self.q(x).view(1, -1, self.heads, self.head_dim).transpose(1, 2)
        return F.scaled_dot_product_attention(q, *past, enable_gqa=True), past


@pytest.mark.parametrize(
    ("program", "calls", "source", "tokens_dim"),
    [
        (TinyAttention(), (prompt,), CacheSource.FRESH, 2),
        (TinyAttention(), (prompt, step), CacheSource.APPENDED, 2),
        (LateTransposing(), (prompt, step), CacheSource.APPENDED, 1),
        (Reads(), (prompt, step), CacheSource.READ, 2),
    ],
    ids=["prompt", "step", "by token", "read"],
)
def test_sources(program, calls, source, tokens_dim):
    ((key, value),) = context_of(program, *calls).uses.values()
    for use, role in ((key, "key"), (value, "value")):
        assert (use.source, use.tokens_dim) == (source, tokens_dim)
        assert (use.of_cache is not None) == (source in (CacheSource.APPENDED, CacheSource.READ))
        assert (use.new_tokens is not None) == (source is CacheSource.APPENDED)
        assert use.of_cache is None or use.of_cache.format.role == role


@pytest.mark.parametrize("quantized", [False, True])
def test_buffers(quantized):
    buffers = [
        empty_cache(1, 1, 64, 16, role=role) if quantized else torch.zeros(1, 1, 64, 16) for role in ("key", "value")
    ]
    call = (torch.randn(1, 1, 32), torch.tensor([0]), *buffers, (torch.arange(64) <= 0)[None])
    ((key, value),) = context_of(BufferAttention(), lambda _: call).uses.values()
    assert (key.source, value.source) == (CacheSource.BUFFER, CacheSource.BUFFER)
    assert [use.buffer.buffer.name for use in (key, value)] == ["l_keys_", "l_values_"]
    assert key.buffer.whole and key.buffer.count == 1


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("made_inside", [False, True])
def test_buffers_in_inference_mode(quantized, made_inside):
    """What is written to a dense one that was made there is not counted; a quantized one needs no count."""

    def buffers():
        roles = ("key", "value")
        return [empty_cache(1, 1, 64, 16, role=role) if quantized else torch.zeros(1, 1, 64, 16) for role in roles]

    made = buffers()
    with torch.inference_mode():
        made = buffers() if made_inside else made
        call = (torch.randn(1, 1, 32), torch.tensor([0]), *made, (torch.arange(64) <= 0)[None])
        gm, inputs = capture(BufferAttention(), lambda _: call, config=CONFIG)[-1]
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    uncounted = {name for name, value in zip(names, inputs, strict=True) if value.is_inference()}
    context = PIPELINE.rewrite(gm, CONFIG, uncounted=frozenset(uncounted)).context
    assert ("l_keys_" in uncounted) == made_inside
    if made_inside and not quantized:
        (reason,) = context.reasons
        assert not context.uses and reason.text.startswith("keys: they are a buffer made under torch.inference_mode()")
    else:
        assert len(context.uses) == 1 and not context.reasons


def test_keys_and_values_of_two_kinds():
    class Mixed(TinyAttention):
        def forward(self, x, past=None):
            if past is None:
                return super().forward(x)
            q = self.q(x).view(1, -1, self.heads, self.head_dim).transpose(1, 2)
            k = self.k(x).view(1, -1, 1, self.head_dim).transpose(1, 2)
            keys = torch.cat([past[0], k], 2)
            return F.scaled_dot_product_attention(q, keys[:, :, 1:], past[1], enable_gqa=True), (keys, past[1])

    def both(x, past=None):
        return model(x, past)

    model = Mixed()
    context = context_of(both, prompt, step)
    (reason,) = context.reasons
    assert not context.uses and reason.text.startswith("keys are a quantized cache with new tokens appended, but")


# --- caches that another attention reads, too -------------------------------------------------------------------------


class TwoStreams(TinyAttention):
    """An attention over the cache, and one over something else in five dimensions, which is not recognized."""

    def __init__(self, second) -> None:
        super().__init__(heads=2, kv_heads=2)
        self.second = second

    def forward(self, x, past=None):
        out, (keys, values) = super().forward(x, past)
        q = self.q(x).view(1, -1, self.heads, self.head_dim).transpose(1, 2)
        return out + self.attend(q[:, None], *self.second(self, x, keys, values)), (keys, values)

    def attend(self, q, k, v):
        weights = torch.softmax(torch.einsum("bnhtc,bnhsc->bnhts", q, k), -1)
        return torch.einsum("bnhts,bnhsc->bnhtc", weights, v).sum().expand(1)

    def new(self, x):
        return (f(x).view(1, -1, self.heads, self.head_dim).transpose(1, 2) for f in (self.k, self.v))


def longer(model, x, keys, values):
    """ProphetNet: the cached tokens, and others behind them."""
    k, v = model.new(x)
    return torch.stack([torch.cat([keys, k], 2)], 1), torch.cat([torch.cat([values, v], 2).unsqueeze(1)], 1)


def of_new_tokens(model, x, keys, values):
    return (torch.stack([side * 0.5], 1) for side in model.new(x))


@pytest.mark.parametrize(
    ("second", "quantized"), [(longer, False), (of_new_tokens, True)], ids=["of the cache", "of new tokens"]
)
def test_what_an_unrecognized_attention_reads_is_not_quantized(second, quantized):
    """Every step would dequantize it, and return it dense."""
    model = TwoStreams(second)
    for calls in ((prompt,), (prompt, step), (prompt, step, step)):
        context = context_of(model, *calls)
        assert len(context.attentions) == len(context.unmatched) == 1
        assert (len(context.uses) == 1, bool(context.quantized or context.caches)) == (quantized, quantized)
        reasons = [reason.text for reason in context.reasons]
        assert any(reason.startswith("an attention that is not rewritten reads the same") for reason in reasons) != (
            quantized
        )


class TwoValues(TinyAttention):
    """Two attentions over the same keys, with different values."""

    def forward(self, x, past=None):
        out, (keys, values, *_) = super().forward(x, past and past[:2])
        other = self.v(x + 1.0).view(1, -1, self.kv_heads, self.head_dim).transpose(1, 2)
        other = torch.cat([past[2], other], 2) if past is not None else other
        q = self.q(x).view(1, -1, self.heads, self.head_dim).transpose(1, 2)
        more = F.scaled_dot_product_attention(q * 2.0, keys, other, enable_gqa=True)
        return out + more.sum(), (keys, values, other)


def test_keys_with_two_values_are_not_quantized():
    for calls in ((prompt,), (prompt, step), (prompt, step, step)):
        context = context_of(TwoValues(), *calls)
        assert len(context.attentions) == 2 and not context.uses and not context.caches and not context.quantized
        assert {reason.text.partition(",")[0] for reason in context.reasons} == {
            "another attention reads its keys with other values"
        }


class Merged(TinyAttention):
    """T5Gemma 2: one softmax over its own tokens and those of an encoder."""

    def others(self, past):
        """The keys and values of the encoder."""
        return past[2:]

    def forward(self, x, past=None):
        k = self.k(x).view(1, -1, 1, self.head_dim).transpose(1, 2)
        v = self.v(x).view(1, -1, 1, self.head_dim).transpose(1, 2)
        q = self.q(x).view(1, -1, self.heads, self.head_dim).transpose(1, 2)
        if past is None:
            past = (k[:, :, :0], v[:, :, :0], k * 2.0, v * 2.0)
        keys, values = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        sides = (torch.cat([own, other], 2) for own, other in zip((keys, values), self.others(past), strict=True))
        return F.scaled_dot_product_attention(q, *sides, enable_gqa=True), (keys, values, *past[2:])


class Computed(Merged):
    """Those of the encoder are not what is cached."""

    def others(self, past):
        return past[2] * past[2], past[3] * past[3]


class Uncached(Merged):
    """Of those of the encoder, values are not cached."""

    def others(self, past):
        return past[2], past[3] * past[3]


def test_keys_put_together_from_two_caches():
    kinds = {1: [CacheSource.FRESH] * 2, 2: [CacheSource.APPENDED, CacheSource.READ]}
    for calls in ((prompt,), (prompt, step), (prompt, step, step)):
        context = context_of(Merged(), *calls)
        assert not context.reasons and len(context.rewritten) == 2
        assert len(context.quantized) + len(context.caches) == 4
        assert [key.source for key, _ in context.uses.values()] == kinds[min(2, len(calls))]
        assert [match.part.index for match in context.attentions] == [0, 1]
        assert len({match.node for match in context.attentions}) == 1


@pytest.mark.parametrize("program", [Computed, Uncached])
def test_keys_put_together_from_a_cache_and_other_tokens(program):
    for calls in ((prompt,), (prompt, step), (prompt, step, step)):
        context = context_of(program(), *calls)
        (reason,) = context.reasons
        assert reason.text.startswith("keys: they are put together in every step, from a cache and other tokens or")
        assert not context.uses and not context.caches and not context.quantized
