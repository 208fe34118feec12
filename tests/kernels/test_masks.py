"""``open_from``: by its definition, as a guard, and that what it calls open is left unread."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import layout, masks, reference
from innerq_compile.kernels import ops as _registered  # noqa: F401
from tests.helpers.strategies import pair, seeds


def state_of(start: list[int], length: list[int]) -> torch.Tensor:
    state = torch.zeros((len(start), 2, 4), dtype=torch.int32)
    state[..., layout.START] = torch.tensor(start)[:, None]
    state[..., layout.LENGTH] = torch.tensor(length)[:, None]
    return state


@st.composite
def masked(draw):
    """A mask over two sequences, their starts, and how much longer than they the mask is."""
    rows, tokens = draw(st.integers(1, 4)), draw(st.integers(4, 24))
    lead = draw(st.sampled_from([(2, 1, rows), (1, 3, rows), (2, 1, 1), (1,), ()]))
    starts = draw(st.lists(st.integers(0, tokens - rows), min_size=2, max_size=2))
    hidden = draw(st.sampled_from([0.0, 0.1, 0.5]))
    kind = draw(st.sampled_from(["bool", "low", "-inf", "bias", "nan"]))
    return lead, rows, tokens, starts, draw(st.integers(0, 5)), hidden, kind


@given(masked(), seeds)
def test_open_from_is_its_definition(case, seed):
    lead, rows, tokens, starts, longer, hidden, kind = case
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand((*lead, tokens + longer), generator=generator) >= hidden
    mask[..., : max(starts)] = False
    if kind != "bool":
        other = {"low": -3e4, "-inf": -torch.inf, "bias": -0.5, "nan": torch.nan}[kind]
        padding = torch.arange(tokens + longer) < max(starts)
        mask = torch.where(mask, 0.0, torch.where(padding, -torch.inf, other)).half()
    state = state_of(starts, [tokens - start for start in starts])
    found = torch.ops.innerq.open_from(mask, state, rows)
    assert found.dtype == torch.int32 and found.shape == (2,)
    scores = mask.expand(2, 3, rows, tokens + longer)
    for b in range(2):
        wanted = 0
        for position in range(tokens - rows + 1):
            column = scores[b, :, :, position].flatten().tolist()
            if not all(value is True or (value == 0 and value is not False) for value in column):
                wanted = position + 1
        assert found[b] == wanted


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("compiled", [False, True])
def test_showing_what_is_not_stored_fails_loudly(kind, compiled):
    state = state_of([0, 3], [20, 17])
    mask = torch.arange(20) >= torch.tensor([0, 3])[:, None, None, None]
    mask = mask if kind == "bool" else torch.where(mask, 0.0, -torch.inf)
    call = torch.compile(masks.open_from, fullgraph=True) if compiled else masks.open_from
    assert call(mask, state, 1).tolist() == [0, 3]
    mask[1, 0, 0, 1] = True if kind == "bool" else -2.0
    with pytest.raises(RuntimeError, match="shows tokens that were hidden from the whole prompt"):
        call(mask, state, 1)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_open_is_left_unread(rows, padded):
    """NaN in place of what the mask adds to the open blocks reaches no result; elsewhere it does."""
    pytest.importorskip("triton")
    from innerq_compile.kernels.triton import attention
    from tests.helpers.triton_cases import Attention, rms_ratio

    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Attention(**pair(), mask="open-added", padded=padded, causal=False, rows=rows, tokens=230)
    call = case.call(device, torch.Generator().manual_seed(4))
    state, fmt, opened = call.keys.state, case.k_fmt, call.open_from
    assert call.mask is not None and opened is not None
    expected = reference.decode_attention(call, torch.float64)
    plain = attention.decode_attention(dataclasses.replace(call, open_from=None))
    assert rms_ratio(plain, expected) < 2e-3
    start = state[:, 0, layout.START]
    blocks = reference.quantized_blocks(state, fmt)[:, 0]
    first = (opened - start - fmt.sink).clamp(min=0).add(31) // 32  # the first block that is open
    place = torch.arange(230, device=device)
    where = (place >= (start + fmt.sink + first * 32)[:, None]) & (place < (start + fmt.sink + blocks * 32)[:, None])
    assert where.any()
    call = dataclasses.replace(call, mask=call.mask.masked_fill(where[:, None, None], torch.nan))
    assert rms_ratio(attention.decode_attention(call), expected) < 2e-3
    assert attention.decode_attention(dataclasses.replace(call, open_from=None)).isnan().any()
