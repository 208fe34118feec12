"""Preallocated quantized caches without the compiler: they behave as the dense buffers that they stand for."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile import InnerQBuffer, InnerQError, UnsupportedOperation, empty_cache

B, H, MAX, D = 2, 2, 300, 32


def pair(preset="lossless", role="key"):
    return empty_cache(B, H, MAX, D, role=role, config=preset), torch.zeros(B, H, MAX, D)


WRITES = {
    "slice": lambda buffer, a, k: buffer.__setitem__((slice(None), slice(None), slice(a, a + k.shape[2])), k),
    "positions": lambda buffer, a, k: buffer.__setitem__(
        (slice(None), slice(None), torch.arange(a, a + k.shape[2])), k
    ),
    "index_copy_": lambda buffer, a, k: buffer.index_copy_(2, torch.arange(a, a + k.shape[2]), k),
    "index_put_": lambda buffer, a, k: torch.ops.aten.index_put_(
        buffer, [None, None, torch.arange(a, a + k.shape[2])], k
    ),
    "copy_": lambda buffer, a, k: buffer[:, :, a : a + k.shape[2]].copy_(k),
    "narrow": lambda buffer, a, k: buffer.narrow(2, a, k.shape[2]).copy_(k),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(WRITES)), st.integers(1, 70), st.integers(0, 40)), max_size=6))
def test_writes_are_those_of_a_dense_buffer(writes):
    quantized, dense = pair()
    held = 0
    for form, count, back in writes:
        first = max(0, held - back)
        count = min(count, MAX - first)
        new = torch.randn(B, H, count, D)
        for buffer in (quantized, dense):
            WRITES[form](buffer, first, new)
        held = first + count
        dense[:, :, held:] = 0  # what lies behind a write is forgotten
        assert quantized.tokens_held == held
    assert torch.equal(quantized.dequantize(), dense)
    assert torch.equal(quantized[:, :, 3:9] + 1, dense[:, :, 3:9] + 1)


def test_what_is_held_is_read_until_it_is_written_over():
    """A program that starts anew tells so by what it writes, or by `zero_`: before, its tokens are there."""
    quantized, dense = pair()
    x = torch.randn(B, H, 20, D)
    for buffer in (quantized, dense):
        buffer[:, :, :20] = x
    assert torch.equal(quantized[:, :, :5] + 1, dense[:, :, :5] + 1)
    quantized[:, :, :1] = x[:, :, :1]
    assert quantized.tokens_held == 1 and not quantized.dequantize()[:, :, 1:].any()
    quantized.zero_()
    assert quantized.tokens_held == 0 and not quantized.dequantize().any()


@pytest.mark.parametrize("preset", ["base", "hybrid"])
def test_quantized_contents_are_those_of_a_cache_made_at_once(preset):
    from innerq_compile import InnerQTensor

    quantized, _ = pair(preset)
    x = torch.randn(B, H, 250, D)
    quantized[:, :, :200] = x[:, :, :200]
    for i in range(200, 250):
        quantized[:, :, i : i + 1] = x[:, :, i : i + 1]
    expected = torch.cat([InnerQTensor.from_dense(x[:, :, :200], preset, role="key"), x[:, :, 200:]], 2)
    assert torch.equal(quantized.dequantize()[:, :, :250], expected.dequantize())


def test_refused_writes_change_nothing():
    quantized, _ = pair()
    quantized[:, :, :10] = torch.randn(B, H, 10, D)
    before = quantized.dequantize()
    new = torch.randn(B, H, 2, D)
    for wrong in (
        lambda: quantized.__setitem__((slice(None), slice(None), slice(12, 14)), new),  # a gap
        lambda: quantized.__setitem__((slice(None), slice(None), torch.tensor([5, 3])), new),
        lambda: quantized.__setitem__((0, slice(None), slice(10, 12)), new[0]),
        lambda: quantized.add_(1),
        lambda: quantized.index_copy_(1, torch.tensor([0]), quantized.dequantize()[:, :1]),
    ):
        with pytest.raises(UnsupportedOperation, match="quantized cache"):
            wrong()
    assert torch.equal(quantized.dequantize(), before)


def test_copies_are_independent():
    quantized, _ = pair()
    quantized[:, :, :40] = torch.randn(B, H, 40, D)
    before = quantized.dequantize()
    file = io.BytesIO()
    torch.save(quantized, file)
    file.seek(0)
    for other in (copy.deepcopy(quantized), quantized.clone(), torch.load(file), quantized.to("cpu", copy=True)):
        assert isinstance(other, InnerQBuffer)
        assert torch.equal(other.dequantize(), before)
        other.zero_()
        assert other.tokens_held == 0 and not other.dequantize().any()
    assert torch.equal(quantized.dequantize(), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "keys"},
        {"batch": 0},
        {"max_tokens": -1},
        {"head_dim": 577},
        {"dtype": torch.int32},
        {"config": "big"},
    ],
    ids=str,
)
def test_bad_arguments_name_what_is_allowed(wrong):
    arguments = {"batch": 1, "heads": 1, "max_tokens": 8, "head_dim": 32, "role": "key", **wrong}
    with pytest.raises(InnerQError, match=r"allowed"):
        empty_cache(**arguments)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_write_before_the_start_is_an_error(compiled, no_inductor):
    buffer = empty_cache(1, 2, 300, 32, role="value", config="lossless")
    buffer.index_copy_(2, torch.arange(5), torch.ones(1, 2, 5, 32))

    def write(buffer, at):
        return buffer.index_copy_(2, at, torch.ones(1, 2, 1, 32)).shape

    call = torch.compile(write, backend="innerq", options={"preset": "lossless"}) if compiled else write
    with pytest.raises(Exception, match=r"positions are counted from its start|before its start"):
        call(buffer, torch.tensor([-1]))
    assert buffer._storage.tensors.state[0, 0].tolist()[:2] == [0, 5]


def test_heads_of_a_buffer_are_constants():
    """The same holds for copies of a buffer and for a buffer that is loaded from a file. Formats depend on them."""
    buffer, _ = pair("base")
    file = io.BytesIO()
    torch.save(buffer, file)
    file.seek(0)
    for same in (buffer, buffer[:, :, :30], copy.deepcopy(buffer), torch.load(file)):
        assert same._dynamo_static_indices == {1, 3}
