"""Attention of a prompt: against the definition in float64, in one piece and in blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import causal_attention as module
from innerq_compile.kernels import ops as _registered  # noqa: F401
from tests.helpers.strategies import seeds


def by_definition(query, key, value, shown, window, scale):
    """The output in float64, and which rows see any key at all."""
    query, key, value = (x.double() for x in (query, key, value))
    groups, length = query.shape[1] // key.shape[1], key.shape[2]
    key, value = (side.repeat_interleave(groups, 1) for side in (key, value))
    seen = torch.ones(query.shape[0], 1, length, length, dtype=torch.bool).tril()
    if shown is not None:
        seen = seen & shown[:, None, None]
    if window is not None:
        seen = seen & torch.ones(length, length, dtype=torch.bool).triu(1 - window)
    scores = (query @ key.mT * scale).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ value, seen.any(-1)


@st.composite
def prompts(draw):
    batch, heads, groups, length = (draw(st.integers(1, most)) for most in (3, 2, 3, 40))
    window = draw(st.none() | st.integers(1, 45))
    padding = draw(st.sampled_from(["none", "unasked", "in front", "anywhere"]))
    rows = draw(st.sampled_from([4, 8, 1024]))
    return batch, heads, groups, length, window, padding, rows


@given(prompts(), seeds)
def test_attention_is_its_definition(case, seed):
    batch, heads, groups, length, window, padding, rows = case
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes):  # the heads of a token side by side in memory
        return torch.randn(batch, length, *sizes, generator=generator).transpose(1, 2)

    query, key, value = random(heads * groups, 16), random(heads, 16), random(heads, 8)
    shown = None if padding == "unasked" else torch.ones(batch, length, dtype=torch.bool)
    if padding == "in front":
        shown = torch.arange(length) >= torch.randint(0, length, (batch, 1), generator=generator)
    elif padding == "anywhere":
        shown = torch.rand(batch, length, generator=generator) < 0.7
    flag = None if shown is None else shown.all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", rows)
        out = torch.ops.innerq.causal_attention(query, key, value, shown, flag, window, 0.3)
    wanted, seen = by_definition(query, key, value, shown, window, 0.3)
    seen = seen.transpose(1, 2).expand(batch, length, heads * groups)
    torch.testing.assert_close(out.transpose(1, 2)[seen].double(), wanted.transpose(1, 2)[seen], atol=1e-5, rtol=1e-5)
    fake = torch.ops.innerq.causal_attention(*(x.to("meta") for x in (query, key, value)), None, None, window, 0.3)
    assert fake.shape == out.shape and fake.transpose(1, 2).is_contiguous() and out.transpose(1, 2).is_contiguous()


def test_no_mask_where_nothing_is_hidden(monkeypatch):
    def no_mask(*_):
        raise AssertionError("a mask was made")

    monkeypatch.setattr(module, "mask_of", no_mask)
    x = torch.randn(2, 2, 30, 16)
    shown = torch.ones(2, 30, dtype=torch.bool)
    for window in (None, 30, 100):
        torch.ops.innerq.causal_attention(x, x, x, shown, shown.all(), window, 1.0)
    with pytest.raises(AssertionError, match="a mask was made"):
        torch.ops.innerq.causal_attention(x, x, x, shown, shown.all(), 29, 1.0)


def test_masks_of_long_prompts_are_small(monkeypatch):
    sizes, made = [], module.mask_of

    def watched(*arguments):
        sizes.append(made(*arguments).shape[-2:])
        return made(*arguments)

    monkeypatch.setattr(module, "mask_of", watched)
    x = torch.randn(1, 1, 5000, 16)
    shown = torch.arange(5000)[None] > 3
    torch.ops.innerq.causal_attention(x, x, x, shown, shown.all(), 200, 1.0)
    assert len(sizes) == 5 and all(rows <= 1024 and columns < 1024 + 256 for rows, columns in sizes)
