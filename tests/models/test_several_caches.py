"""A decoder that attends to its own tokens and to those of an encoder: in one softmax, or in an attention for each."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.passes.analysis.several_caches import OTHER_PART
from tests.helpers.emulated_graphs import emulation
from tests.helpers.without_inductor import as_it_is, without_inductor

HEADS, D = 2, 64
attend = F.scaled_dot_product_attention


def at_once(q, own, other, mask):
    return attend(q, *(torch.cat(both, 2) for both in zip(own, other, strict=True)), attn_mask=mask)


def one_by_one(q, own, other, mask):
    count = own[0].shape[2]
    return attend(q, *own, attn_mask=mask[..., :count]) + attend(q, *other, attn_mask=mask[..., count:])


def changed_through_a_view(q, own, other, mask):
    keys, values = (torch.cat(both, 2) for both in zip(own, other, strict=True))
    values[:, :, :5].mul_(30)
    return attend(q, keys, values, attn_mask=mask)


def mask_of_numbers(q, own, other, mask):
    """The first mask is boolean, of which the concatenation makes ones and zeros, which are added."""
    count = own[0].shape[2]
    masks = (
        (torch.arange(count) >= 60).expand(*mask.shape[:-1], -1),
        torch.zeros(*mask.shape[:-1], mask.shape[-1] - count),
    )
    return at_once(q, own, other, torch.cat(masks, -1))


def outputs(attention, encoder, compiled=lambda program: program):
    """What a prompt and four steps give, with ``encoder`` tokens of an encoder, of which the last are padding.

    A prompt attends to both caches one by one, so that both are quantized.
    """

    def prompt(q, k, v, mask, *other):
        own, other = (k * 1, v * 1), tuple(each * 1 for each in other)
        return one_by_one(q, own, other, mask), *own, *other

    def step(q, k, v, mask, past_k, past_v, *other):
        own = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        return attention(q, own, other, mask), *own

    def shown(count):
        mask = torch.ones(2, 1, 1, count + encoder, dtype=torch.bool)
        mask[0, ..., -3:] = False
        return mask

    def new(count):
        return [torch.randn(2, HEADS, count, D, generator=generator) for _ in range(3)]

    torch._dynamo.reset()
    clear_reports()
    generator = torch.Generator().manual_seed(0)
    prompt, step = compiled(prompt), compiled(step)
    found = []
    with torch.no_grad():
        out, *caches = prompt(*new(1), shown(1), *new(encoder)[:2])
        for count in range(2, 6):
            found.append(out)
            out, *own = step(*new(1), shown(count), *caches)
            caches = [*own, *caches[2:]]
    return [*found, out]


def by_innerq(**options):
    return functools.partial(torch.compile, backend=innerq_backend, options=options)


def decodes():
    return [report for report in compiled_graphs() if report.kind == "decode"]


@pytest.mark.parametrize("attention", [at_once, one_by_one])
def test_a_long_encoder_is_attended_to_in_recorded_steps(attention):
    """Its mask has more columns than the cache of the decoder has room for."""
    with emulation(), without_inductor(as_it_is):
        found = outputs(attention, 1000, by_innerq(preset="lossless"))
        assert any(report.recorded for report in decodes())
    torch.testing.assert_close(found, outputs(attention, 1000), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(("attention", "rewritten"), [(changed_through_a_view, 0), (mask_of_numbers, 2)])
def test_what_only_seems_to_be_one_attention_to_two_caches(attention, rewritten):
    found = outputs(attention, 70, by_innerq(preset="lossless"))
    assert decodes() and all(report.rewritten == rewritten for report in decodes())
    torch.testing.assert_close(found, outputs(attention, 70), atol=1e-5, rtol=1e-5)


# --- a cache that begins behind another -------------------------------------------------------------------------------


def replies(compiled=lambda program: program, *, window=None, counts=(1, 1, 1, 1, 1, 1), prompt=70):
    """Outputs of a prompt that is cached by itself, and of tokens behind it whose cache begins with the first of them.

    Args:
        window: how many of these tokens are cached at most; None for all.
        counts: how many tokens each call has.
        prompt: tokens of the prompt, of which the first of the second sequence are padding.
    """

    def first(q, k, v, mask):
        keys, values = (torch.cat([k.new_empty(0), side], 2) for side in (k, v))
        return attend(q, keys, values, attn_mask=mask), keys, values

    def further(q, k, v, mask, prompt_k, prompt_v, past_k, past_v):
        own = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        out = at_once(q, (prompt_k, prompt_v), own, mask)
        return out, *(own if window is None else (side[:, :, -window:] for side in own))

    def new(count):
        return [torch.randn(2, HEADS, count, D, generator=generator) for _ in range(3)]

    def causal(rows, columns):
        mask = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows).repeat(2, 1, 1, 1)
        if columns >= prompt:
            mask[1, ..., :9] = False
        return mask

    torch._dynamo.reset()
    clear_reports()
    generator = torch.Generator().manual_seed(0)
    first, further = compiled(first), compiled(further)
    with torch.no_grad():
        out, *of_prompt = first(*new(prompt), causal(prompt, prompt))
        found, own = [out[:, :, 9:]], [torch.tensor([]), torch.tensor([])]
        for count in counts:
            past = 0 if own[0].dim() == 1 else own[0].shape[2]
            out, *own = further(*new(count), causal(count, prompt + past + count), *of_prompt, *own)
            found.append(out)
    return found, (*of_prompt, *own)


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("window", [None, 3, 127])
@pytest.mark.parametrize("counts", [(1,) * 7, (2, 1, 1, 5, 1), (90, 1, 1, 1)])
def test_a_cache_begins_behind_another(window, counts):
    """Both are quantized from their first token on; where one begins, the other is read dense."""
    found, caches = replies(by_innerq(preset="lossless"), window=window, counts=counts)
    expected, _ = replies(window=window, counts=counts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all(isinstance(cache, InnerQTensor) for cache in caches)
    assert all(report.rewritten == report.attentions == 2 for report in decodes())


def by_head(x):
    return torch.cat([x[:, :1], x[:, 1:]], 1)


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("side", [lambda x: x * 1, by_head], ids=["computed", "concatenated"])
def test_tokens_that_are_appended_elsewhere_begin_no_cache(side):
    """Else they would be quantized twice, and the cache would be dequantized in every step without a word."""

    def made(k, v):
        return side(k), side(v)

    def first(q, k, v):
        k, v = made(k, v)
        return attend(q, k, v, is_causal=True), k, v

    def step(q, k, v, mask, *past):
        new = made(k, v)
        return at_once(q, past, new, mask), *new

    def story(compiled):
        torch._dynamo.reset()
        clear_reports()
        torch.manual_seed(0)
        out, *cache = compiled(first)(*torch.randn(3, 2, HEADS, 70, D))
        found, program = [out], compiled(step)
        for count in range(71, 74):
            mask = torch.ones(2, 1, 1, count, dtype=torch.bool)
            out, *new = program(*torch.randn(3, 2, HEADS, 1, D), mask, *cache)
            assert not any(isinstance(side, InnerQTensor) for side in new)
            cache = [torch.cat(both, 2) for both in zip(cache, new, strict=True)]
            found.append(out)
        return found

    with torch.no_grad():
        found = story(by_innerq(preset="lossless"))
        assert decodes()
        for report in decodes():
            assert report.rewritten == 0 and {reason.text for reason in report.reasons} == {OTHER_PART}
        torch.testing.assert_close(found, story(lambda program: program), atol=1e-5, rtol=1e-5)
