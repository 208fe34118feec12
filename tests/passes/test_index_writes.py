"""A buffer is written at positions that a tensor holds, where the graph is to be recorded."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig
from tests.helpers.programs import SlicedBuffers, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


def graph_of_a_step() -> torch.fx.GraphModule:
    """The graph of the second step, whose position is a symbol."""
    buffers = [torch.zeros(1, 1, 64, 16) for _ in range(2)]
    calls = [lambda _, at=at: (torch.randn(1, 1, 32), at, *buffers) for at in (7, 8)]
    return capture(SlicedBuffers(), *calls, config=PLAIN)[-1][0]


class TestIndexWrites(expecttest.TestCase):
    def test_a_step_that_is_recorded(self):
        changes = changes_by_pass(graph_of_a_step(), PLAIN, static_lengths=True, read=brief_code_of)
        self.assertExpectedInline(
            changes["index_writes"],
            """\
+ arange = torch.arange(1, device = device(type='cpu'))
+ add_1 = torch.add(full, arange)
+ index_copy_ = l_keys_.index_copy_(2, add_1, k)
+ arange_1 = torch.arange(1, device = device(type='cpu'))
+ add_2 = torch.add(full, arange_1)
+ index_copy__1 = l_values_.index_copy_(2, add_2, v)""",
        )


def test_other_graphs_keep_their_writes():
    assert "index_writes" not in changes_by_pass(graph_of_a_step(), PLAIN)
