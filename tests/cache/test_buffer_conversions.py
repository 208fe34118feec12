"""A quantized buffer in another dtype, and written at the tokens that a mask selects."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile import InnerQBuffer, UnsupportedOperation, empty_cache
from innerq_compile.kernels.formats import DTYPES

PRESETS = ("base", "hybrid", "lossless")


def filled(preset, role, dtype, tokens: int, room: int = 250):
    buffer = empty_cache(1, 2, room, 32, role=role, config=preset, dtype=dtype)
    if tokens:
        buffer[:, :, :tokens] = torch.randn(1, 2, tokens, 32, dtype=dtype)
    return buffer


@given(
    st.sampled_from(PRESETS),
    st.sampled_from(["key", "value"]),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 5, 200]),
)
def test_to_a_dtype_stays_a_quantized_buffer(preset, role, source, target, tokens):
    buffer = filled(preset, role, source, tokens)
    before = buffer.dequantize()
    moved = buffer.to(target)
    assert isinstance(moved, InnerQBuffer) and moved.dtype == target and moved.shape == buffer.shape
    assert (moved is buffer) == (source == target)
    tolerance = 0.05 if torch.bfloat16 in (source, target) else 0.01
    torch.testing.assert_close(moved.dequantize(), before.to(target), rtol=tolerance, atol=tolerance)
    new = torch.randn(1, 2, 3, 32, dtype=target)
    moved[:, :, tokens : tokens + 3] = new
    assert moved.tokens_held == tokens + 3
    if target != source:
        assert torch.equal(buffer.dequantize(), before), "the first one is another buffer"


def test_the_query_profile_stays():
    buffer = filled("base", "key", torch.float32, 200)
    assert buffer.format.uses_queries
    profiles = [b.inner_tensors()["query_profile"] for b in (buffer, buffer.half())]
    assert torch.equal(*profiles) and profiles[0].any()


def test_other_dtypes_are_dense():
    buffer = filled("base", "value", torch.float32, 40)
    other = buffer.to(torch.complex64)
    assert not isinstance(other, InnerQBuffer) and torch.equal(other, buffer.dequantize().to(torch.complex64))


@pytest.mark.parametrize("form", ["setitem", "index_put_"])
@pytest.mark.parametrize("mask", [[False, True], [True, False], [True, True], [False, False]], ids=str)
def test_a_mask_writes_the_tokens_that_it_selects(form, mask):
    buffer, mask = filled("lossless", "key", torch.float32, 2, room=2), torch.tensor(mask)
    expected = buffer.dequantize()
    new = torch.randn(1, 2, int(mask.sum()), 32)
    expected[:, :, mask] = new
    if mask.any():
        expected[:, :, int(mask.nonzero().max()) + 1 :] = 0  # what lies behind a write is forgotten
    if form == "setitem":
        buffer[:, :, mask] = new
    else:
        torch.ops.aten.index_put_(buffer, [None, None, mask], new)
    assert torch.equal(buffer.dequantize(), expected)


@pytest.mark.parametrize("mask", [[True, False, True], [True], [True] * 4], ids=str)
def test_a_mask_that_a_buffer_cannot_follow_is_refused(mask):
    buffer, mask = filled("lossless", "key", torch.float32, 3, room=3), torch.tensor(mask)
    before = buffer.dequantize()
    with pytest.raises(UnsupportedOperation, match="mask of tokens that follow one another"):
        buffer[:, :, mask] = torch.randn(1, 2, int(mask.sum()), 32)
    assert torch.equal(buffer.dequantize(), before)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("role", ["key", "value"])
def test_moves_and_copies_of_every_preset(preset, role):
    buffer = filled(preset, role, torch.float16, 200)
    for other in (copy.deepcopy(buffer), buffer.clone(), buffer.to("cpu", copy=True), buffer.to(torch.float16)):
        assert isinstance(other, InnerQBuffer) and torch.equal(other.dequantize(), buffer.dequantize())
