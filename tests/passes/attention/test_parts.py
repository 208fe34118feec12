"""A range of one dimension of a tensor, in every spelling."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.passes.attention.parts import part_of


def found(fn):
    """What the last node of a function of ``x [2, 6, 9, 16]`` is taken to be."""
    graphs = []

    def backend(gm, _):
        graphs.append(gm.graph)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(fn, backend=backend)(torch.randn(2, 6, 9, 16))
    ((node,),) = graphs[0].output_node().args
    part = part_of(node)
    return part and (part.source.op, part.dim, part.start, part.stop, len(part.nodes))


@pytest.mark.parametrize(
    ("fn", "dim", "start", "stop", "nodes"),
    [
        (lambda x: x[:, 2:4], 1, 2, 4, 1),
        (lambda x: x[:, -2:], 1, 4, 6, 1),
        (lambda x: x[..., :3, :], 2, 0, 3, 1),
        (lambda x: x[:, :, :, 8:99], 3, 8, 16, 1),
        (lambda x: x.narrow(1, 2, 3), 1, 2, 5, 1),
        (lambda x: torch.narrow(x, -1, 0, 4), 3, 0, 4, 1),
        (lambda x: x.chunk(3, 1)[1], 1, 2, 4, 2),
        (lambda x: torch.chunk(x, 4, dim=-2)[2], 2, 6, 9, 2),
        (lambda x: x.split([1, 2, 3], dim=1)[2], 1, 3, 6, 2),
        (lambda x: torch.split(x, 4, 1)[-1], 1, 4, 6, 2),
        (lambda x: x.tensor_split(2, 1)[0], 1, 0, 3, 2),
    ],
)
def test_ranges(fn, dim, start, stop, nodes):
    assert found(fn) == ("placeholder", dim, start, stop, nodes)
    assert torch.equal(fn(x := torch.randn(2, 6, 9, 16)), x.narrow(dim, start, stop - start))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x[:, ::2],
        lambda x: x[:, 1],
        lambda x: x[:, 1:2, 2:],
        lambda x: x[:, [0, 1]],
        lambda x: x[:, None, :3],
        lambda x: x.unbind(1)[0],
        lambda x: x[:, 1:].clone(),
        lambda x: x.narrow(1, -2, 2),
    ],
)
def test_anything_else(fn):
    assert found(fn) is None
