"""Shadows of buffers whose oldest tokens new ones push out hold what the buffers hold, whatever happens to these."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from innerq_compile import compiled_graphs
from innerq_compile.runtime.call import CompiledGraph

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

WINDOW = 20


def pushed(q, k, v, keys, values):
    for buffer, new in ((keys, k), (values, v)):
        buffer.copy_(torch.cat([buffer[:, :, new.shape[2] :], new], 2))
    return sdpa(q, keys, values)


def placed(q, k, v, keys, values, at):
    for buffer, new in ((keys, k), (values, v)):
        buffer.index_copy_(2, at, new)
    return sdpa(q, keys, values, attn_mask=(torch.arange(WINDOW) <= at)[None, None])


def new_tokens() -> list[torch.Tensor]:
    return [torch.randn(1, 2, 1, 16) for _ in range(3)]


def compiled(program, **options):
    return torch.compile(program, backend="innerq", dynamic=False, options={"preset": "lossless", **options})


class Both:
    """A program on its buffers, and the compiled one on copies of them: every output is compared."""

    def __init__(self) -> None:
        self.dense = [torch.randn(1, 2, WINDOW, 16) for _ in range(2)]
        self.held = [buffer.clone() for buffer in self.dense]
        self.compiled = {program: compiled(program) for program in (pushed, placed)}

    def step(self, program, *at) -> None:
        new = new_tokens()
        expected = program(*new, *self.dense, *at)
        torch.testing.assert_close(self.compiled[program](*new, *self.held, *at), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(self.held, self.dense)


@torch.no_grad()
def test_two_graphs_take_turns():
    """One writes at positions, the other pushes out: each sees what the other has done."""
    both = Both()
    for at in (3, 4, 5):
        both.step(placed, torch.tensor([at]))
    for _ in range(3):
        both.step(pushed)
    both.step(placed, torch.tensor([7]))
    for _ in range(WINDOW + 40):
        both.step(pushed)
    both.step(placed, torch.tensor([0]))
    both.step(pushed)
    assert all(graph.rewritten for graph in compiled_graphs())


@torch.no_grad()
@pytest.mark.parametrize("steps", [0, 2], ids=["first", "known"])
def test_a_call_that_is_interrupted(monkeypatch, steps):
    """The shadow is made anew: nobody knows whether it or the buffers were written."""
    real, failing = CompiledGraph.__init__, []

    def init(graph, compiled, *args):
        def call(*inputs):
            results = compiled(*inputs)
            if failing:
                raise failing.pop()
            return results

        real(graph, call, *args)

    monkeypatch.setattr(CompiledGraph, "__init__", init)
    both = Both()
    for _ in range(steps):
        both.step(pushed)
    new = new_tokens()
    failing.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        both.compiled[pushed](*new, *both.held)
    pushed(*new, *both.dense)
    torch.testing.assert_close(both.held, both.dense)
    for _ in range(3):
        both.step(pushed)


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
def test_buffers_made_in_inference_mode_have_none(inference):
    """Those and others take turns in both modes: each kind has graphs of its own."""
    both = Both()
    with torch.inference_mode():
        inside = Both()
    inside.compiled = both.compiled
    for at in range(3):
        with torch.inference_mode(inference), torch.no_grad():
            both.step(placed, torch.tensor([at]))
        with torch.inference_mode():
            inside.step(placed, torch.tensor([at]))
            inside.held[0].zero_(), inside.dense[0].zero_()  # nobody counts this
    assert hasattr(both.held[0], "_innerq_shadow") and not hasattr(inside.held[0], "_innerq_shadow")


@torch.no_grad()
def test_its_memory_stays_where_it_is():
    """Also where the program changes its buffers, and where dropped tokens are forgotten: recordings rely on it."""
    window = 1100

    def step(q, k, v, keys, values):
        for buffer, new in ((keys, k), (values, v)):
            buffer.copy_(torch.cat([buffer[:, :, new.shape[2] :], new], 2))
        return sdpa(q, keys, values)

    program = compiled(step, preset="base")
    keys, values = (torch.randn(1, 2, window, 16) for _ in range(2))
    addresses, bases = set(), set()
    for number in range(40):
        program(torch.randn(1, 2, 16, 16), *(torch.randn(1, 2, 16, 16) for _ in range(2)), keys, values)
        shadow = keys._innerq_rolling_shadow
        addresses.add(tuple(tensor.data_ptr() for side in (shadow.key, shadow.value) for tensor in side.tensors))
        bases.add((shadow.key.base, shadow.value.base))
        if number == 30:
            keys.zero_()
    assert len(addresses) == 1
    assert (256, 256) in bases and (0, 0) in bases
    assert shadow.key.nbytes < 0.6 * keys.nbytes
