"""A buffer, and a slice of one, does what a dense tensor does, or refuses to; it never does something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from innerq_compile import InnerQBuffer, InnerQConfig, InnerQTensor, UnsupportedOperation, empty_cache

BATCH, HEADS, TOKENS, ROOM, HEAD_DIM = 2, 2, 50, 70, 16
WHOLE = slice(None)


def buffer_and_dense() -> tuple[InnerQBuffer, torch.Tensor]:
    buffer = empty_cache(BATCH, HEADS, ROOM, HEAD_DIM, role="value", config="lossless")
    buffer[:, :, :TOKENS] = torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM)
    return buffer, buffer.dequantize()


def new(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(BATCH, HEADS, count, HEAD_DIM, generator=generator)


READS = {
    "numpy": lambda t: torch.from_numpy(t.numpy()),
    "asarray": lambda t: torch.from_numpy(np.asarray(t)),
    "dlpack": torch.from_dlpack,
    "tolist": lambda t: torch.tensor(t.tolist()),
    "view(-1)": lambda t: t.contiguous().view(-1),
    "reshape": lambda t: t.reshape(-1),
    "flatten": lambda t: t.flatten(1),
    "linear": lambda t: torch.nn.functional.linear(t, torch.ones(3, HEAD_DIM)),
    "quantile": lambda t: t.quantile(0.5),
    "narrow": lambda t: t.narrow(2, 3, 10),
    "narrow from the end": lambda t: t.narrow(2, -10, 5),
    "narrow by a tensor": lambda t: t.narrow(-2, torch.tensor(3), 5),
    "[mask of uint8]": lambda t: t[:, :, torch.arange(t.shape[2]).lt(3).to(torch.uint8)],
    "[-5:]": lambda t: t[:, :, -5:],
    "clone": lambda t: t.clone(),
    "half": lambda t: t.half().float(),
    "data": lambda t: t.data,
    "split": lambda t: torch.cat(t.split(7, 2), 2),
    "roll": lambda t: t.roll(3, 2),
    "flip": lambda t: t.flip(2),
    "stack": lambda t: torch.stack(t.unbind(2)),
    "where": lambda t: torch.where(t > 0, t, 1.0),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("part", [WHOLE, slice(10, 40), slice(20, None)], ids=["whole", "slice", "end"])
@pytest.mark.parametrize("name", READS)
def test_reads(name, part):
    buffer, dense = (tensor[:, :, part] for tensor in buffer_and_dense())
    result, expected = READS[name](buffer), READS[name](dense)
    assert result.shape == expected.shape
    result = result.dequantize() if isinstance(result, InnerQTensor) else result
    torch.testing.assert_close(result, expected, atol=0 if name != "half" else 1e-2, rtol=0)


def at(index, value):
    return lambda t: t.__setitem__((WHOLE, WHOLE, index), value)


#: Each writes behind the tokens that are held, or the last of them.
WRITES = {
    "positions": at(torch.tensor([50, 51, 52]), new(3)),
    "positions from the end": at(torch.tensor([-20, -19, -18]), new(3)),
    "index_put_ from the end": lambda t: torch.ops.aten.index_put_(t, [None, None, torch.tensor([-20])], new(1)),
    "mask of uint8": at((torch.arange(ROOM) == 49).to(torch.uint8), new(1)),
    "slice from the end": at(slice(-20, -17), new(3)),
    "narrow from the end": lambda t: t.narrow(2, -20, 3).copy_(new(3)),
    "slice of a slice": lambda t: t[:, :, 10:][:, :, 40:43].copy_(new(3)),
    "position in a slice": lambda t: at(torch.tensor([3]), new(1))(t[:, :, 47:53]),
    "position from the end of a slice": lambda t: at(torch.tensor([-1]), new(1))(t[:, :, 40:50]),
    "index_copy_ to a slice": lambda t: t[:, :, 40:].index_copy_(2, torch.tensor([10]), new(1)),
    "zero_ of a slice": lambda t: t[:, :, 40:].zero_(),
    "a number": at(slice(50, 53), 2.0),
    "all of it": lambda t: t.copy_(new(ROOM)),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", WRITES)
def test_writes(name):
    buffer, dense = buffer_and_dense()
    for tensor in (buffer, dense):
        WRITES[name](tensor)
    assert torch.equal(buffer.dequantize(), dense)


OUT_OF_BOUNDS = {
    "position": at(torch.tensor([ROOM]), new(1)),
    "position behind a slice": lambda t: at(torch.tensor([10]), new(1))(t[:, :, 40:50]),
    "position before a slice": lambda t: at(torch.tensor([-11]), new(1))(t[:, :, 40:50]),
    "index_copy_ behind a slice": lambda t: t[:, :, 40:50].index_copy_(2, torch.tensor([10]), new(1)),
    "index_copy_ from the end": lambda t: t[:, :, 40:50].index_copy_(2, torch.tensor([-1]), new(1)),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_positions_that_there_are_not(name):
    buffer, dense = buffer_and_dense()
    with pytest.raises(IndexError, match="out of bounds"):
        OUT_OF_BOUNDS[name](buffer)
    assert torch.equal(buffer.dequantize(), dense)


ONES = torch.ones(BATCH, HEADS, ROOM, HEAD_DIM)
REFUSED = {
    "out=": lambda t: torch.add(ONES, ONES, out=t),
    "_foreach_add_": lambda t: torch._foreach_add_([torch.ones(2), t], 1),
    "index_copy_ of a mask": lambda t: t.index_copy_(2, torch.ones(ROOM, dtype=torch.bool), new(ROOM)),
    "index_copy_ of uint8": lambda t: t.index_copy_(2, torch.ones(ROOM, dtype=torch.uint8), new(ROOM)),
    "index_copy_ of fewer tokens": lambda t: t.index_copy_(2, torch.tensor([50, 51]), new(1)),
    "apply_": lambda t: t.apply_(lambda x: 0.0),
    "map_": lambda t: t.map_(ONES, lambda a, b: b),
    "data = ": lambda t: setattr(t, "data", ONES),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_writes(name):
    buffer, dense = buffer_and_dense()
    with pytest.raises(UnsupportedOperation, match="would write into a quantized cache"):
        REFUSED[name](buffer)
    assert torch.equal(buffer.dequantize(), dense)


@pytest.mark.parametrize("name", ["apply_", "map_", "data = "])
def test_refused_writes_to_a_tensor_that_grows(name):
    cache = InnerQTensor.from_dense(ONES, "lossless", role="value")
    with pytest.raises(UnsupportedOperation, match="would write into a quantized cache"):
        REFUSED[name](cache)
    assert torch.equal(cache.dequantize(), ONES)


def test_zeros_in_front_of_tokens_are_written():
    """As by any write, what was held behind them is discarded."""
    buffer, _ = buffer_and_dense()
    assert buffer.tokens_held > 3
    buffer[:, :, :3].zero_()
    assert buffer.tokens_held == 3


@pytest.mark.parametrize(("first", "held"), [(0, 0), (70, 70), (100, 100), (120, 100)])
def test_zeros_up_to_the_end_are_no_tokens(first, held):
    """Positions without tokens are zero. Zeros that were written would move tokens out of the recent window."""
    config = InnerQConfig.preset("base", sink=4, recent=16)
    buffer = empty_cache(1, 2, 200, 64, role="value", config=config)
    buffer[:, :, :100] = torch.randn(1, 2, 100, 64)
    before = buffer.dequantize()
    buffer[:, :, first:].zero_()
    assert buffer.tokens_held == held
    assert torch.equal(buffer.dequantize()[:, :, :held], before[:, :, :held])
    assert not buffer.dequantize()[:, :, held:].any()
