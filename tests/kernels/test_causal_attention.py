"""Attention of a prompt: against the definition in float64, in one piece and in blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import causal_attention as module
from innerq_compile.kernels import ops as _registered  # noqa: F401
from tests.helpers.prompt_attention import by_definition
from tests.helpers.strategies import seeds


@st.composite
def prompts(draw):
    batch, heads, groups, length = (draw(st.integers(1, most)) for most in (3, 2, 3, 40))
    window = draw(st.none() | st.integers(1, 45))
    padding = draw(st.sampled_from(["none", "unasked", "in front", "anywhere"]))
    rows = draw(st.sampled_from([4, 8, 1024]))
    return batch, heads, groups, length, window, padding, rows, draw(st.booleans())


@given(prompts(), seeds)
def test_attention_is_its_definition(case, seed):
    batch, heads, groups, length, window, padding, rows, has_sinks = case
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
    sinks = 3 * torch.randn(heads * groups, generator=generator) if has_sinks else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", rows)
        out = torch.ops.innerq.causal_attention(query, key, value, shown, flag, window, sinks, 0.3)
    wanted, seen = by_definition(query, key, value, shown, window, sinks, 0.3)
    seen = seen.transpose(1, 2).expand(batch, length, heads * groups)
    torch.testing.assert_close(out.transpose(1, 2)[seen].double(), wanted.transpose(1, 2)[seen], atol=1e-5, rtol=1e-5)
    fake = torch.ops.innerq.causal_attention(
        *(x.to("meta") for x in (query, key, value)), None, None, window, None, 0.3
    )
    assert fake.shape == out.shape and fake.transpose(1, 2).is_contiguous() and out.transpose(1, 2).is_contiguous()


def test_no_mask_where_nothing_is_hidden(monkeypatch):
    def no_mask(*_):
        raise AssertionError("a mask was made")

    monkeypatch.setattr(module, "mask_of", no_mask)
    x = torch.randn(2, 2, 30, 16)
    shown = torch.ones(2, 30, dtype=torch.bool)
    for window in (None, 30, 100):
        torch.ops.innerq.causal_attention(x, x, x, shown, shown.all(), window, None, 1.0)
    with pytest.raises(AssertionError, match="a mask was made"):
        torch.ops.innerq.causal_attention(x, x, x, shown, shown.all(), 29, None, 1.0)


def test_masks_of_long_prompts_are_small(monkeypatch):
    sizes, made = [], module.mask_of

    def watched(*arguments):
        sizes.append(made(*arguments).shape[-2:])
        return made(*arguments)

    monkeypatch.setattr(module, "mask_of", watched)
    x = torch.randn(1, 1, 5000, 16)
    shown = torch.arange(5000)[None] > 3
    torch.ops.innerq.causal_attention(x, x, x, shown, shown.all(), 200, None, 1.0)
    assert len(sizes) == 5 and all(rows <= 1024 and columns < 1024 + 256 for rows, columns in sizes)
    sizes.clear()
    torch.ops.innerq.causal_attention(x, x, x, None, None, 4000, None, 1.0)
    assert len(sizes) == 5 and all(rows <= 1024 for rows, _ in sizes)
    sizes.clear()
    torch.ops.innerq.causal_attention(x, x, x, None, None, 200, None, 1.0)
    assert len(sizes) == 3  # those of the first block, all inner ones, and the last one
