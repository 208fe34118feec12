"""Every usual spelling of an attention is found and rewritten; what only looks like one is left alone, with a reason.

Each runs as the middle of a tiny decoder: a prompt, then decode steps of one and of three tokens, compiled in
``lossless`` and compared with eager.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import InnerQError, compiled_graphs
from innerq_compile.compiler.backend import innerq_backend
from tests.helpers import spellings
from tests.helpers.spellings import (
    GROUP,
    HEADS,
    KV_HEADS,
    MIN,
    SCALE,
    SPELLINGS,
    B,
    D,
    Decoder,
    at_operator_mt,
    bias,
    repeat,
    run,
    weighted,
)


@pytest.fixture
def compiled(graphs_as_they_are, one_thread):
    """Compile a module with lossless caches, its graphs run eagerly."""

    def compile_module(module, **options):
        config = {"preset": "lossless", **options}
        return torch.compile(module, backend=innerq_backend, options=config)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield compile_module


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_is_rewritten(name, compiled):
    model = Decoder(SPELLINGS[name])
    expected = run(model)
    outputs = run(compiled(model, strict=True))
    for out, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    reports = compiled_graphs()
    assert {report.kind for report in reports} == {"prefill", "decode"}
    assert all((report.attentions, report.rewritten) == (1, 1) for report in reports)


# --- what is left alone, and why ------------------------------------------------------------------------------------

TRAPS = {}


def trap(reason):
    def register(fn):
        TRAPS[fn.__name__] = (fn, reason)
        return fn

    return register


@trap("is_causal aligns the first query with the first key")
def causal_flag_with_a_past(q, k, v, mask):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)


@trap("dropout is active")
def sdpa_with_dropout(q, k, v, mask):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), mask, 1e-9)


@trap("dropout is active")
def dropout_that_is_on(q, k, v, mask):
    weights = torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1)
    return F.dropout(weights, 1e-9, training=True) @ repeat(v)


@trap("scaled by a factor that is not constant")
def learned_temperature(q, k, v, mask):
    return weighted(q @ repeat(k).mT * (1 + q.sum() * 0) + bias(mask), v)


@trap("the softmax is not over the tokens")
def softmax_over_queries(q, k, v, mask):
    return torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), 1) @ repeat(v)


@trap("too large for a mask")
def filled_with_zero(q, k, v, mask):
    return weighted((q @ repeat(k).mT * SCALE).masked_fill(~mask, 0.0), v)


@trap("too large for a mask")
def where_with_a_small_number(q, k, v, mask):
    return weighted(torch.where(mask, q @ repeat(k).mT * SCALE, -5.0), v)


@trap("replaced by a value that is not constant")
def where_of_two_scores(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE
    return weighted(torch.where(mask, scores, scores * 0.5), v)


@trap("masked before they are soft-capped")
def mask_inside_softcap(q, k, v, mask):
    return weighted(torch.tanh(q @ repeat(k).mT * SCALE + bias(mask).clamp(min=-1)), v)


@trap("go through sigmoid")
def unknown_operation_on_scores(q, k, v, mask):
    return weighted(torch.sigmoid(q @ repeat(k).mT) + bias(mask), v)


@trap("go through clamp")
def clamped_scores(q, k, v, mask):
    return weighted((q @ repeat(k).mT * SCALE).clamp(min=-0.1) + bias(mask), v)


@trap("go through mul after the softmax")
def head_mask(q, k, v, mask):
    weights = torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1)
    return (weights * torch.tensor([1.0, 0.5, 0.0, 1.0])[:, None, None]) @ repeat(v)


@trap("also used elsewhere, by sum")
def weights_used_elsewhere(q, k, v, mask):
    weights = torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1)
    return weights @ repeat(v) + weights.sum(-1, keepdim=True)


@trap("go through setitem")
def scores_changed_by_index(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    scores[:, :, :, -1] = 0.5
    return weighted(scores, v)


@trap("also used elsewhere")
def scores_changed_through_a_view(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    scores.view(-1).mul_(0.5)
    return weighted(scores, v)


@trap("the product of query and key was not found")
def relative_positions(q, k, v, mask):
    """The sum of two products of the query, as in DeBERTa."""
    return weighted(q @ repeat(k).mT * SCALE + q @ (repeat(k) * 0.5).mT + bias(mask), v)


@trap("keys: they are computed in every step from another cached tensor")
def keys_rotated_after_the_cache(q, k, v, mask):
    k = k * torch.cos(torch.arange(k.shape[2]))[:, None]
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), mask)


@trap("the values are scaled")
def scaled_values(q, k, v, mask):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v * 0.5), mask)


@trap("keys and values are not read by the same heads")
def crossed_heads(q, k, v, mask):
    return torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1) @ v.repeat(1, GROUP, 1, 1)


@trap("values: ")
def values_of_a_part_of_the_tokens(q, k, v, mask):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(torch.cat(v.chunk(2, 2), 2)), mask)


@trap("the values are changed in place")
def value_heads_changed_in_place(q, k, v, mask):
    half = v.chunk(2, 1)[0]
    half.mul_(0.5)
    return F.scaled_dot_product_attention(q, repeat(k), half.repeat(1, HEADS, 1, 1), mask)


@trap("the values are changed in place")
def repeated_values_changed_through_a_view(q, k, v, mask):
    values = repeat(v)
    values[:, :, :2].mul_(0.5)
    return F.scaled_dot_product_attention(q, repeat(k), values, mask)


@trap("also used elsewhere")
def sinks_before_the_shift_of_scores(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    sink = torch.zeros(B, HEADS, q.shape[2], 1)
    logits = torch.cat([scores, sink], -1)
    return torch.softmax(logits, -1)[..., :-1] @ repeat(v) + logits[..., -1:]


@trap("a number is added to the scores, but not to the sink logits")
def shift_without_sinks(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    scores = scores - scores.amax(-1, keepdim=True)
    logits = torch.cat([scores, torch.zeros(B, HEADS, q.shape[2], 1)], -1)
    return torch.softmax(logits, -1)[..., :-1] @ repeat(v)


def gated(scores, gate, v):
    return weighted(scores, v) * gate[..., None]


@trap("also used elsewhere, by logsumexp")
def gate_of_scores_before_the_mask(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE
    return gated(scores + bias(mask), torch.sigmoid(scores.logsumexp(-1) - torch.zeros(HEADS, 1)), v)


@trap("also used elsewhere, by logsumexp")
def gate_of_scores_before_a_mask_in_place(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE
    gate = torch.sigmoid(scores.logsumexp(-1) - torch.zeros(HEADS, 1))
    return gated(scores.masked_fill_(~mask, MIN), gate, v)


@trap("also used elsewhere, by logsumexp")
def gate_that_is_the_part_of_the_sink(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    return gated(scores, torch.sigmoid(torch.zeros(HEADS, 1) - scores.logsumexp(-1)), v)


@trap("also used elsewhere, by logsumexp")
def gate_of_scaled_sums(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    return gated(scores, torch.sigmoid(scores.logsumexp(-1) * 2.0 - torch.zeros(HEADS, 1)), v)


@trap("also used elsewhere, by logsumexp")
def gate_over_the_heads(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    gate = torch.sigmoid(scores.logsumexp(1) - torch.zeros(1))
    return gated(scores, gate[:, None, :, -1], v)


@trap("also used elsewhere, by logsumexp")
def gate_of_other_heads(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    gate = torch.sigmoid(scores.logsumexp(-1) - torch.zeros(HEADS, 1)).unflatten(1, (KV_HEADS, GROUP))
    return gated(scores, gate.transpose(1, 2).flatten(1, 2), v)


@trap("also used elsewhere, by logsumexp")
def output_read_before_its_gate(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    out = weighted(scores, v)
    return out * torch.sigmoid(scores.logsumexp(-1) - torch.zeros(HEADS, 1))[..., None] + out


@trap("also used elsewhere, by logsumexp")
def gate_in_place(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    out = weighted(scores, v)
    out *= torch.sigmoid(scores.logsumexp(-1) - torch.zeros(HEADS, 1))[..., None]
    return out


@trap("also used elsewhere, by logsumexp")
def gate_read_twice(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    gate = torch.sigmoid(scores.logsumexp(-1) - torch.zeros(HEADS, 1))
    return gated(scores, gate, v) + gate[..., None]


@trap("a number is added to the scores, but not to the sink logits")
def gate_of_shifted_scores(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    scores = scores - scores.amax(-1, keepdim=True)
    return gated(scores, torch.sigmoid(scores.logsumexp(-1) - torch.zeros(HEADS, 1)), v)


@trap("the sink logits are changed in place")
def sinks_changed_in_place(q, k, v, mask):
    sink = torch.zeros(HEADS)
    logits = torch.cat([q @ repeat(k).mT * SCALE + bias(mask), sink.view(1, -1, 1, 1).expand(B, -1, q.shape[2], 1)], -1)
    sink.add_(1.0)
    return torch.softmax(logits, -1)[..., :-1] @ repeat(v)


@trap("the sink logits are changed in place")
def a_copy_of_sinks_changed_in_place(q, k, v, mask):
    sinks = torch.zeros(HEADS).view(1, -1, 1, 1).expand(B, -1, q.shape[2], 1).clone()
    sinks[:, :, 0] = 2.0
    logits = torch.cat([q @ repeat(k).mT * SCALE + bias(mask), sinks], -1)
    return torch.softmax(logits, -1)[..., :-1] @ repeat(v)


@trap("the sink logits are computed from the scores")
def sinks_of_the_scores(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    return torch.softmax(torch.cat([scores, scores.amax(-1, keepdim=True)], -1), -1)[..., :-1] @ repeat(v)


@trap("the query or a mask is changed in place before the output is computed")
def a_mask_changed_before_the_gate(q, k, v, mask):
    added = bias(mask).clone()
    scores = q @ repeat(k).mT * SCALE + added
    out = torch.softmax(scores, -1) @ repeat(v)
    added[..., 0] = -1e9
    return out * torch.sigmoid(torch.logsumexp(scores, -1) - torch.zeros(HEADS).view(1, -1, 1))[..., None]


@trap("the query or a mask is changed in place before the output is computed")
def a_mask_changed_through_a_view(q, k, v, mask):
    added = bias(mask).clone()
    first = added[..., 0]
    scores = q @ repeat(k).mT * SCALE + added
    first.fill_(-1e9)
    return torch.softmax(scores, -1) @ repeat(v)


@trap("the query or a mask is changed in place before the output is computed")
def a_query_changed_through_a_view(q, k, v, mask):
    query = q.clone()
    first = query[:, 0]
    scores = query @ repeat(k).mT * SCALE + bias(mask)
    first.mul_(2.0)
    return torch.softmax(scores, -1) @ repeat(v)


@trap("go through max")
def not_below_a_number_that_is_no_mask(q, k, v, mask):
    return weighted(torch.max(q @ repeat(k).mT * SCALE + bias(mask), torch.full((), -0.5)), v)


@trap("go through clamp_min")
def not_below_a_low_number(q, k, v, mask):
    return weighted((q @ repeat(k).mT * 1e5 + bias(mask)).clamp_min(-1e5), v)


@trap("go through clamp")
def clamped_on_both_sides(q, k, v, mask):
    return weighted((q @ repeat(k).mT * SCALE + bias(mask)).clamp(MIN, 0.0), v)


def masked(q, k, hidden):
    return torch.softmax((q @ repeat(k).mT * SCALE).masked_fill(hidden, -torch.inf), -1)


@trap("and the scores not by the same mask")
def masked_again_by_another_mask(q, k, v, mask):
    hidden = ~mask.roll(1, -1)
    return masked(q, k, ~mask).masked_fill(hidden, 0.0) @ repeat(v)


@trap("and the scores not by the same mask")
def masked_again_by_the_opposite(q, k, v, mask):
    return torch.where(~mask, torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1), 0.0) @ repeat(v)


@trap("and the scores not by the same mask")
def kept_where_it_was_masked(q, k, v, mask):
    weights = torch.softmax((q @ repeat(k).mT * SCALE).masked_fill(~mask, -1e9), -1)
    return torch.where(~mask, weights, 0.0) @ repeat(v)


@trap("and the scores not by the same mask")
def masked_again_by_what_has_changed_in_place(q, k, v, mask):
    hidden = ~mask
    weights = masked(q, k, hidden)
    hidden[:, :, :, 2:3].logical_not_()
    return weights.masked_fill(hidden, 0.0) @ repeat(v)


@trap("and the scores not by the same mask")
def masked_again_in_other_dimensions(q, k, v, mask):
    """The same mask of tokens, which hides others where it broadcasts to heads in another order."""
    hidden = ~mask.expand(B, HEADS, -1, -1) & (torch.arange(HEADS) > 0)[:, None, None]
    weights = masked(q, k, hidden).unflatten(1, (KV_HEADS, GROUP)).transpose(1, 2).flatten(1, 2)
    weights = weights.masked_fill(hidden, 0.0).unflatten(1, (GROUP, KV_HEADS)).transpose(1, 2).flatten(1, 2)
    return weights @ repeat(v)


@trap("go through masked_fill after the softmax")
def weights_replaced_by_a_number(q, k, v, mask):
    return masked(q, k, ~mask).masked_fill(~mask, 0.5) @ repeat(v)


@trap("do not match")
def first_token_left_out(q, k, v, mask):
    weights = torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1)
    return weights[..., 1:] @ repeat(v)[:, :, 1:]


@trap("the keys are changed in place")
def keys_changed_in_place(q, k, v, mask):
    k = repeat(k)
    k.mul_(0.5)
    return F.scaled_dot_product_attention(q, k, repeat(v), mask)


@trap("flex_attention is not supported")
def flex(q, k, v, mask):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v, enable_gqa=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", TRAPS)
def test_trap_is_left_alone(name, compiled):
    fn, reason = TRAPS[name]
    model = Decoder(fn)
    expected = run(model)
    outputs = run(compiled(model))
    for out, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    last = compiled_graphs()[-1]
    assert last.rewritten == 0
    (found,) = last.reasons
    assert reason in found.text
    assert any(file in found.where for file in (__file__, spellings.__file__)), found.where
    torch._dynamo.reset()
    with pytest.raises(InnerQError, match="strict: an attention was not rewritten"):
        run(compiled(model, strict=True))


# --- other decoders -------------------------------------------------------------------------------------------------


def test_rows_that_see_nothing_are_zero_where_weights_are_masked_again(compiled):
    """In a prompt, in a step of one token and in one of several, of which one token of one sequence sees nothing."""

    def outputs(model):
        generator, past, found, length = torch.Generator().manual_seed(5), None, [], 0
        for tokens in (6, 1, 3, 1):
            length += tokens
            mask = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens).expand(B, 1, -1, -1).clone()
            mask[1, :, 0] = False
            out, past = model(torch.randn(B, tokens, 32, generator=generator), past, mask)
            found.append(out)
        return found

    model = Decoder(SPELLINGS["masked_again_behind_the_softmax"])
    expected = outputs(model)
    for out, want in zip(outputs(compiled(model, strict=True)), expected, strict=True):
        assert not want[1, :, 0].any()
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    assert all(report.rewritten == 1 for report in compiled_graphs())


class Counting(Decoder):
    """A decoder that is told how many tokens there are, which nothing says to be the length of its cache."""

    def forward(self, x, past, length):
        attend = self.attend
        self.attend = lambda q, k, v, mask: attend(q, k, v, length)
        try:
            return super().forward(x, past, None)
        finally:
            self.attend = attend


def causal(q, length):
    return torch.arange(length) <= torch.arange(length - q.shape[2], length)[:, None]


def of_a_mask(q, k, v, length):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), causal(q, length))


def of_views(q, k, v, length):
    scores = torch.bmm(q.flatten(0, 1), repeat(k).reshape(B * HEADS, length, D).mT) * SCALE
    scores = scores.view(B, HEADS, -1, length).masked_fill(~causal(q, length), -torch.inf)
    return scores.softmax(-1) @ repeat(v).reshape(B, HEADS, length, D)


def of_slices(q, k, v, length):
    return F.scaled_dot_product_attention(
        q, repeat(k)[:, :, :length], repeat(v.narrow(2, 0, length)), causal(q, length)
    )


def of_a_slice_of_values(q, k, v, length):
    scores = (q @ repeat(k).mT * SCALE)[..., :length].masked_fill(~causal(q, length), -torch.inf)
    return scores.softmax(-1) @ repeat(v[:, :, :length])


def counted(model, steps, less=0):
    """Outputs of a prompt and steps; the last one attends to ``less`` tokens less than there are."""
    generator, past, found, length = torch.Generator().manual_seed(5), None, [], 0
    for index, tokens in enumerate(steps):
        length += tokens
        taken = length - (less if index == len(steps) - 1 else 0)
        out, past = model(torch.randn(B, tokens, 32, generator=generator), past, taken)
        found.append(out)
    return found


@pytest.mark.parametrize("attend", [of_a_mask, of_views, of_slices], ids=lambda attend: attend.__name__)
def test_a_length_with_a_symbol_of_its_own(attend, compiled):
    model, steps = Counting(attend), (6, 1, 1, 3, 1)
    expected = counted(model, steps)
    for out, want in zip(counted(compiled(model, strict=True), steps), expected, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    assert all(report.rewritten == 1 for report in compiled_graphs())


@pytest.mark.parametrize("attend", [of_slices, of_a_slice_of_values], ids=lambda attend: attend.__name__)
def test_a_length_that_was_that_of_the_cache(attend, compiled):
    """In a later call of the same program it is not: a graph of its own computes what the program does."""
    model, steps = Counting(attend), (6, 1, 1, 1, 1)
    expected = counted(model, steps, less=2)
    for out, want in zip(counted(compiled(model), steps, less=2), expected, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)


class Keeping(Decoder):
    """A decoder that caches keys and values in a form of its own."""

    def __init__(self, keep, use, attend, dims=(2, 2), value_dim=D) -> None:
        super().__init__(attend)
        self.keep, self.use, self.dims, self.value_dim = keep, use, dims, value_dim
        self.v = nn.Linear(32, KV_HEADS * value_dim)

    def forward(self, x, past, mask):
        q = self.q(x).view(B, -1, HEADS, D).transpose(1, 2)
        k = self.keep(self.k(x).view(B, -1, KV_HEADS, D).transpose(1, 2))
        v = self.v(x).view(B, -1, KV_HEADS, self.value_dim).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], self.dims[0]), torch.cat([past[1], v], self.dims[1])
        return self.attend(q, self.use(k), v, mask), (k, v)


def same(x):
    return x


def check_same(model, compiled, **options):
    expected, outputs = run(model), run(compiled(model, **options))
    for out, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    return compiled_graphs()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["sdpa_positional", "bshd_einsum", "grouped_einsum"])
def test_keys_and_values_of_different_head_dim(name, compiled):
    reports = check_same(Keeping(same, same, SPELLINGS[name], value_dim=32), compiled, strict=True)
    assert reports[-1].rewritten == 1


def test_lengths_of_keys_and_values_that_are_two_symbols(compiled):
    """SDPA asks them to be equal, and Dynamo, which may have two symbols for them, notes nothing of it."""
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        reports = check_same(Decoder(SPELLINGS["sdpa_positional"]), compiled, strict=True)
    assert reports[-1].kind == "decode" and reports[-1].rewritten == 1


def test_keys_that_are_cached_scaled(compiled):
    reports = check_same(Keeping(lambda k: k * 0.5, lambda k: k * 3.0, at_operator_mt), compiled, strict=True)
    assert reports[-1].rewritten == 1


class Bshd(Decoder):
    """A decoder that caches ``[B, S, H, D]``, and transposes what it has read; values too, or keys only."""

    def __init__(self, attend, values: bool = True, value_dim=D) -> None:
        super().__init__(attend)
        self.values, self.value_dim = values, value_dim
        self.v = nn.Linear(32, KV_HEADS * value_dim)

    def forward(self, x, past, mask):
        q = self.q(x).view(B, -1, HEADS, D).transpose(1, 2)
        k = self.k(x).view(B, -1, KV_HEADS, D)
        v = self.v(x).view(B, -1, KV_HEADS, self.value_dim)
        v = v if self.values else v.transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat((past[1], v), dim=-3 if self.values else 2)
        heads_first = v.permute(0, 2, 1, 3) if self.values else v
        return self.attend(q, k.transpose(1, 2), heads_first, mask), (k, v)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["sdpa_positional", "bshd_einsum", "grouped_einsum", "at_operator_mt"])
@pytest.mark.parametrize("values", [True, False], ids=["both", "keys-only"])
def test_caches_as_batch_tokens_heads(name, values, compiled):
    reports = check_same(Bshd(SPELLINGS[name], values), compiled, strict=True)
    assert {report.kind for report in reports} == {"prefill", "decode"}
    assert all(report.rewritten == 1 for report in reports)


def test_caches_as_batch_tokens_heads_of_different_head_dim(compiled):
    reports = check_same(Bshd(SPELLINGS["bshd_einsum"], value_dim=32), compiled, strict=True)
    assert reports[-1].rewritten == 1


@pytest.mark.parametrize("prompt", [1, 6])
def test_one_head_and_one_token_in_both_layouts(prompt, compiled):
    """Where both sizes are 1, nothing in the first graph tells the layouts apart; a later one does."""

    class OneHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(32, D) for _ in range(3))

        def forward(self, x, past, mask):
            q, k, v = (f(x).view(B, -1, 1, D) for f in (self.q, self.k, self.v))
            if past is not None:
                k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
            out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), mask)
            return out, (k, v)

    def run_all(model):
        generator, past, outputs, length = torch.Generator().manual_seed(3), None, [], 0
        for tokens in (prompt, 1, 1, 2, 1):
            length += tokens
            mask = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens)
            out, past = model(torch.randn(B, tokens, 32, generator=generator), past, mask)
            outputs.append(out)
        return outputs, past

    model = OneHead()
    expected, _ = run_all(model)
    outputs, past = run_all(compiled(model))
    for out, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    assert compiled_graphs()[-1].rewritten == 1 and past[0].tokens_dim == 1


@pytest.mark.parametrize(
    ("dims", "dim", "layout"),
    [((2, 0, 1, 3), 0, r"\[S, B, H, D\]"), ((0, 1, 3, 2), 3, r"\[B, H, D, S\]")],
    ids=str,
)
def test_caches_in_another_layout_have_a_reason(dims, dim, layout, compiled):
    back = [dims.index(d) for d in range(4)]
    model = Keeping(lambda k: k.permute(dims), lambda k: k.permute(back), at_operator_mt, (dim, 2))
    reports = check_same(model, compiled)
    assert reports[-1].rewritten == 0
    torch._dynamo.reset()
    with pytest.raises(InnerQError, match=f"the keys are cached as {layout}"):
        run(compiled(model, strict=True))


@pytest.mark.parametrize(
    ("keep", "use", "dim", "layout"),
    [
        (lambda k: k.flatten(0, 1), lambda k: k.unflatten(0, (B, -1)), 1, r"\[B\*H, S, D\]"),
        (
            lambda k: k.transpose(1, 2).flatten(2),
            lambda k: k.unflatten(2, (KV_HEADS, D)).transpose(1, 2),
            1,
            r"\[B, S, H\*D\]",
        ),
    ],
    ids=["batch-and-heads", "heads-and-channels"],
)
def test_caches_of_three_dimensions_have_a_reason(keep, use, dim, layout, compiled):
    model = Keeping(keep, use, at_operator_mt, (dim, 2))
    reports = check_same(model, compiled)
    assert reports[-1].rewritten == 0
    torch._dynamo.reset()
    with pytest.raises(InnerQError, match=f"the keys are cached as {layout}; a quantized cache is"):
        run(compiled(model, strict=True))


class ReturningWeights(Decoder):
    def forward(self, x, past, mask):
        out, past = super().forward(x, past, mask)
        out, weights = out
        return out, (*past, weights)


def test_weights_that_are_returned(compiled):
    def attend(q, k, v, mask):
        weights = torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1)
        return weights @ repeat(v), weights

    reports = check_same(ReturningWeights(attend), compiled)
    (reason,) = reports[-1].reasons
    assert "also used elsewhere (they are returned)" in reason.text


class WithExperts(Decoder):
    """A router and a mixture of experts behind the attention: softmax and products, and no attention."""

    def __init__(self, attend) -> None:
        super().__init__(attend)
        self.router = nn.Parameter(torch.randn(D, 3))
        self.experts = nn.Parameter(torch.randn(3, D))

    def forward(self, x, past, mask):
        out, past = super().forward(x, past, mask)
        routing = torch.softmax(out @ self.router, dim=-1)
        best = F.softmax(F.linear(out, self.experts), -1, dtype=torch.float32)
        return out + routing @ self.experts + torch.einsum("...e,ed->...d", best, self.experts), past


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["sdpa_positional", "at_operator_mt"])
def test_router_of_experts_is_no_attention(name, compiled):
    reports = check_same(WithExperts(SPELLINGS[name]), compiled, strict=True)
    assert [(report.attentions, report.rewritten) for report in reports] == [(1, 1)] * len(reports)
