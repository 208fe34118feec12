"""Functions of queries and new tokens, as a user's own attention is: nothing that they are given has a known size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from innerq_compile import clear_reports, compiled_graphs
from innerq_compile.compiler.backend import innerq_backend
from tests.helpers.emulated_graphs import emulated  # noqa: F401

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")
BATCH, HEADS, TOKENS = 2, 2, 40


def program(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True), keys, values


def given(tokens: int) -> list[torch.Tensor]:
    return [torch.randn(BATCH, heads, tokens, 16) for heads in (4, HEADS, HEADS)]


@pytest.fixture
def prompted():
    """The compiled function, the dense caches of a prompt and the quantized ones."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    clear_reports()
    compiled = torch.compile(program, backend=innerq_backend, options={"preset": "lossless"})
    empty = [torch.empty(BATCH, HEADS, 0, 16) for _ in range(2)]
    inputs = given(TOKENS)
    return compiled, program(*inputs, *empty)[1:], compiled(*inputs, *empty)[1:]


@pytest.mark.usefixtures("emulated")
@torch.no_grad()
def test_steps_are_recorded(prompted):
    """Each input has a batch size of its own, until they meet in the cache."""
    compiled, dense, held = prompted
    for _ in range(4):
        inputs = given(1)
        expected, *dense = program(*inputs, *dense)
        found, *held = compiled(*inputs, *held)
        torch.testing.assert_close(found, expected)
    (decode,) = [graph for graph in compiled_graphs() if graph.kind == "decode"]
    assert (decode.rewritten, decode.recorded, decode.calls) == (1, 1, 4)


@pytest.mark.parametrize("part", [(slice(1),), (slice(None), slice(1))], ids=["batch", "heads"])
@pytest.mark.parametrize("before", [0, 3], ids=["at first", "behind other steps"])
def test_new_tokens_of_another_shape_are_an_error(prompted, part, before):
    compiled, dense, held = prompted
    for _ in range(before):
        inputs = given(1)
        _, *dense = program(*inputs, *dense)
        _, *held = compiled(*inputs, *held)
    q, k, v = given(1)
    with pytest.raises(Exception, match="cannot append a tensor of shape"):
        compiled(q, k[part], v[part], *held)
    expected = program(q, k, v, *dense)[0]
    torch.testing.assert_close(compiled(q, k, v, *held)[0], expected)  # nothing was changed
