"""The sum of attentions over several caches is the attention over all of their tokens."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, GraphModule

from innerq_compile.passes.emit.concatenated import added_up
from innerq_compile.passes.graph.values import set_example
from innerq_compile.passes.graph.writing import Writer


def part(scores, values):
    """Output and logarithm of the sum of exponentials of one cache; zero where no token is visible."""
    weights = scores.softmax(-1).nan_to_num()
    return weights @ values, scores.logsumexp(-1)


def summed(parts, like):
    graph = Graph()
    nodes = [[graph.placeholder(f"part_{i}_{name}") for name in ("out", "sums")] for i in range(len(parts))]
    output = graph.placeholder("like")
    set_example(output, like)
    graph.output(added_up(Writer(graph), [(out, sums) for out, sums in nodes], output))
    return GraphModule({}, graph)(*(tensor for both in parts for tensor in both), like)


@pytest.mark.parametrize("counts", [(5, 9), (1, 40, 3)])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_it_is_that_over_all_tokens(counts, size):
    scores = [torch.randn(2, 4, 3, count) * size for count in counts]
    values = [torch.randn(2, 4, count, 16) for count in counts]
    scores[0][0, 0, 0] = -torch.inf  # a row that sees nothing of one cache
    for of_part in scores:
        of_part[1, 1, 1] = -torch.inf  # or of any
    found = summed([part(*both) for both in zip(scores, values, strict=True)], torch.empty(0))
    expected, _ = part(torch.cat(scores, -1), torch.cat(values, -2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not found[1, 1, 1].any()


def test_it_has_the_dtype_of_the_program():
    parts = [part(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 4, 8)) for _ in range(2)]
    assert summed([(out.half(), sums) for out, sums in parts], torch.empty(0, dtype=torch.float16)).dtype == torch.half
