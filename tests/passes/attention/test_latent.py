"""Latent attention (MLA): which spellings are recognized, and what looks like one and is left alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import InnerQConfig, InnerQTensor, compiled_graphs, innerq

pytestmark = pytest.mark.usefixtures("no_inductor")

WIDTH, HEADS, RANK, NOPE, ROTARY, VALUE = 32, 3, 16, 8, 16, 12


class Program(nn.Module):
    """A layer of latent attention. Subclasses compute keys and values of what is cached in a way of their own."""

    rotary = ROTARY

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, HEADS * (NOPE + self.rotary), bias=False)
        self.down = nn.Linear(WIDTH, RANK + self.rotary, bias=False)
        self.up = nn.Linear(RANK, HEADS * (NOPE + VALUE), bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def cached(self, x, past):
        latent, rotary = self.down(x)[:, None].split([RANK, self.rotary], dim=-1)
        if past is not None:
            latent, rotary = torch.cat([past[0], latent], dim=2), torch.cat([past[1], rotary], dim=2)
        return latent, rotary

    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE).transpose(1, 2)
        nope, values = up.split([NOPE, VALUE], dim=-1)
        return torch.cat([nope, rotary.expand(-1, HEADS, -1, -1)], dim=-1), values

    def attend(self, q, keys, values, mask):
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    def forward(self, x, past=None, mask=None):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, HEADS, NOPE + self.rotary).transpose(1, 2)
        cache = self.cached(x, past)
        keys, values = self.computed(*cache)
        return self.attend(q, keys, values, mask).transpose(1, 2), cache


class Written(Program):
    """Keys are a new tensor to which both parts are written, as in transformers."""

    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE).transpose(1, 2)
        keys = up.new_empty(*up.shape[:-1], NOPE + self.rotary)
        keys[..., :NOPE].copy_(up[..., :NOPE])
        keys[..., NOPE:].copy_(rotary)
        return keys, up[..., NOPE:]


class SetItems(Program):
    """The same by assignments, of values that come first in a head."""

    def computed(self, latent, rotary):
        up = self.up(latent.squeeze(1)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        values, nope = up.split([VALUE, NOPE], dim=-1)
        keys = nope.new_zeros(*nope.shape[:-1], NOPE + ROTARY)
        keys[:, :, :, :NOPE] = nope
        keys[:, :, :, NOPE:] = rotary
        return keys, values


class FeaturesFirst(Program):
    """Keys and values are parts of the projection, before heads are."""

    def computed(self, latent, rotary):
        nope, values = self.up(latent.squeeze(1)).split([HEADS * NOPE, HEADS * VALUE], dim=-1)
        nope, values = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (nope, values))
        return torch.cat([nope, rotary.expand(-1, HEADS, -1, -1)], dim=-1), values


class ByToken(Program):
    """The cache is ``[B, S, 1, D]``, and the attention is spelled out by einsum."""

    def cached(self, x, past):
        latent, rotary = self.down(x)[:, :, None].split([RANK, ROTARY], dim=-1)
        if past is not None:
            latent, rotary = torch.cat([past[0], latent], dim=1), torch.cat([past[1], rotary], dim=1)
        return latent, rotary

    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE)
        return torch.cat([up[..., :NOPE], rotary.expand(-1, -1, HEADS, -1)], dim=-1), up[..., NOPE:]

    def attend(self, q, keys, values, mask):
        scores = torch.einsum("bhnd,bshd->bhns", q, keys) * 0.2
        if mask is not None:
            scores = scores + mask
        return torch.einsum("bhns,bshd->bhnd", scores.softmax(-1), values)


class WithoutRotary(Program):
    """All of a head's key is computed from the latent: the rotary key has no channels."""

    rotary = 0


class WrittenWithoutRotary(Written):
    rotary = 0


def inputs(tokens: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, tokens, WIDTH)


@torch.no_grad()
def decode(program, xs, padding: int = 0):
    """The outputs of a prompt and steps of ``xs`` tokens, and the cache; the last sequence has ``padding`` in front."""
    outs, past, total = [], None, 0
    for x in xs:
        rows = x.shape[1]
        total += rows
        mask = torch.arange(total) <= torch.arange(total - rows, total)[:, None]
        real = torch.arange(total) >= torch.tensor([0, padding])[:, None]
        mask = torch.where(mask & real[:, None, None, :], 0.0, torch.finfo(torch.float32).min)
        out, past = program(x, past, mask)
        outs.append(out)
    return outs, past


@pytest.mark.sampled(4)
@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize(
    "program", [Program, Written, SetItems, FeaturesFirst, ByToken, WithoutRotary, WrittenWithoutRotary]
)
def test_recognized_and_equal_to_eager(program, padding):
    torch.manual_seed(0)
    xs = [inputs(n) for n in (150, 1, 1, 4, 1)]
    module = program()
    expected, (latent, rotary) = decode(module, xs, padding)
    outs, (held, held_rotary) = decode(innerq(module, preset="lossless"), xs, padding)
    for out, want in zip(outs, expected, strict=True):
        if padding and want.shape[1] > 1 and want is expected[0]:
            out, want = out[:, padding:], want[:, padding:]  # rows of padding see nothing
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-4)
    reports = compiled_graphs()
    assert [report.rewritten for report in reports] == [1] * len(reports), [str(report) for report in reports]
    assert isinstance(held, InnerQTensor) and held.format.role == "value" and held.shape == latent.shape
    assert isinstance(held_rotary, InnerQTensor) and held_rotary.format.role == "key"
    real = (
        (slice(None), slice(padding, None)) if program is ByToken else (slice(None), slice(None), slice(padding, None))
    )
    torch.testing.assert_close(held.dequantize()[real], latent[real])
    torch.testing.assert_close(held_rotary.dequantize()[real], rotary[real])


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("program", [Written, WrittenWithoutRotary])
@pytest.mark.parametrize("preset", ["base", "small", "paper_base"])
def test_quantized_as_it_is_when_the_program_reads_it_dequantized(preset, program):
    """The projections in query and output compute what the program does of the same quantized cache."""
    torch.manual_seed(0)
    xs = [inputs(n) for n in (200, *[1] * 40, 5)]
    module = program()
    plain, _ = decode(innerq(module, preset=preset, rewrite=False), xs)
    torch._dynamo.reset()
    outs, (latent, rotary) = decode(innerq(module, preset=preset), xs)
    for out, want in zip(outs, plain, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-4)
    config = InnerQConfig.preset(preset)
    assert latent.format.bits == max(config.key_bits, config.value_bits) and rotary.format.bits == 8


@pytest.mark.usefixtures("graphs_as_they_are")
def test_a_cache_without_channels_is_one_as_any_other():
    """Copied, saved, cropped and with other sequences it serves the next step."""
    torch.manual_seed(0)
    module = WithoutRotary()
    xs = [inputs(n) for n in (150, 1, 1)]
    ways = (
        lambda side: pickle.loads(pickle.dumps(side)),
        copy.deepcopy,
        lambda side: side.index_select(0, torch.tensor([1, 0])),
        lambda side: side[:, :, :140],
        lambda side: side.to(torch.float32).clone(),
    )
    with torch.no_grad():
        _, dense = decode(module, xs)
        compiled = innerq(copy.deepcopy(module), preset="lossless")
        _, held = decode(compiled, xs)
        for way in ways:
            own, past = ([way(side) for side in cache] for cache in (held, dense))
            assert [side.shape for side in own] == [side.shape for side in past]
            x, mask = inputs(1), torch.zeros(1, past[0].shape[2] + 1)
            out, cache = compiled(x, own, mask)
            torch.testing.assert_close(out, module(x, past, mask)[0], atol=2e-5, rtol=1e-4)
            assert all(isinstance(side, InnerQTensor) for side in cache)


class Bias(Program):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(RANK, HEADS * (NOPE + VALUE))


class Scaled(Program):
    def computed(self, latent, rotary):
        return super().computed(latent * 0.5, rotary)


class Changed(Program):
    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE).transpose(1, 2)
        nope, values = up.split([NOPE, VALUE], dim=-1)
        keys = torch.cat([nope, rotary.expand(-1, HEADS, -1, -1)], dim=-1)
        values.mul_(2)
        return keys, values


class ChangedCopy(Program):
    """A copy is changed, which is other memory than what the projection computes."""

    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE).transpose(1, 2)
        nope, values = up.split([NOPE, VALUE], dim=-1)
        nope = nope.clone()
        nope.mul_(0.25)
        return torch.cat([nope, rotary.expand(-1, HEADS, -1, -1)], dim=-1), values


class ChangedBoth(Program):
    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE).transpose(1, 2).contiguous()
        up[..., :4] = 0
        nope, values = up.split([NOPE, VALUE], dim=-1)
        return torch.cat([nope, rotary.expand(-1, HEADS, -1, -1)], dim=-1), values


class ChangedWeight(Program):
    """The weight is changed through a view of it, behind the projection."""

    def computed(self, latent, rotary):
        found = super().computed(latent, rotary)
        self.up.weight.view(-1)[:64].mul_(1.5)
        return found


class OneRotary(Program):
    """The rotary key of the first sequence serves all of them."""

    def cached(self, x, past):
        latent, rotary = self.down(x)[:, None].split([RANK, ROTARY], dim=-1)
        rotary = rotary[:1].clone()
        if past is not None:
            latent, rotary = torch.cat([past[0], latent], dim=2), torch.cat([past[1], rotary], dim=2)
        return latent, rotary

    def computed(self, latent, rotary):
        return super().computed(latent, rotary.expand(latent.shape[0], -1, -1, -1))


class Broadcast(Program):
    """The rotary part is written without dimensions of sequences and heads."""

    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE).transpose(1, 2)
        keys = up.new_empty(*up.shape[:-1], NOPE + ROTARY)
        keys[..., :NOPE] = up[..., :NOPE]
        keys[..., NOPE:] = rotary[0, 0]
        return keys, up[..., NOPE:]


class Shared(Program):
    """Heads of the query share those of the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, 2 * HEADS * (NOPE + ROTARY), bias=False)

    def forward(self, x, past=None, mask=None):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, 2 * HEADS, NOPE + ROTARY).transpose(1, 2)
        cache = self.cached(x, past)
        out = F.scaled_dot_product_attention(q, *self.computed(*cache), attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2), cache


class Overlapping(Program):
    """The rotary part is written first, and the rest over a channel of it."""

    def computed(self, latent, rotary):
        up = self.up(latent).view(latent.shape[0], -1, HEADS, NOPE + VALUE).transpose(1, 2)
        keys = up.new_zeros(*up.shape[:-1], NOPE + ROTARY)
        keys[..., NOPE:].copy_(rotary)
        keys[..., 1 : NOPE + 1].copy_(up[..., :NOPE])
        return keys, up[..., NOPE:]


class RotatedLate(Program):
    """What is cached is rotated where it is read."""

    def computed(self, latent, rotary):
        return super().computed(latent, rotary * torch.arange(rotary.shape[2])[:, None].cos())


class Nonlinear(Program):
    def computed(self, latent, rotary):
        keys, values = super().computed(latent, rotary)
        return keys, values.tanh()


class Wider(Program):
    """The query is computed in another dtype than the latent."""

    def attend(self, q, keys, values, mask):
        scores = torch.einsum("bhnd,bhsd->bhns", q.double() * 0.2, keys.double())
        weights = (scores if mask is None else scores + mask).softmax(-1)
        return torch.einsum("bhns,bhsd->bhnd", weights, values.double())


COMPUTED = "they are computed in every step from another cached tensor"


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (Bias, "keys or values are computed from a latent with a bias"),
        (Scaled, "a latent or its rotary key is scaled between the cache and the attention"),
        (Changed, "what is computed from a latent is changed in place"),
        (ChangedCopy, "what is computed from a latent is changed in place"),
        (ChangedBoth, "what is computed from a latent is changed in place"),
        (ChangedWeight, ""),
        (OneRotary, ""),
        (Broadcast, ""),
        (Shared, "several heads of the query share what is computed from a latent"),
        (Wider, "a query, a latent and what is computed from it differ in dtype"),
        (Overlapping, COMPUTED),
        (RotatedLate, COMPUTED),
        (Nonlinear, COMPUTED),
    ],
)
def test_left_alone(program, reason):
    torch.manual_seed(0)
    xs = [inputs(n) for n in (40, 1, 1)]
    module = program()
    expected, _ = decode(copy.deepcopy(module), xs)
    outs, cache = decode(innerq(module, preset="base"), xs)
    torch.testing.assert_close(outs, expected, atol=2e-5, rtol=1e-4)
    assert not any(isinstance(tensor, InnerQTensor) for tensor in cache)
    texts = [text.text for report in compiled_graphs() for text in report.reasons]
    assert any(reason in text for text in texts), texts
    assert not any(report.rewritten for report in compiled_graphs())
