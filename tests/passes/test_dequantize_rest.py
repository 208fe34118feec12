"""Whatever else reads a quantized cache reads it dequantized."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig
from tests.helpers.programs import LateTransposing, TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


def graph_of_a_reader(model: TinyAttention) -> torch.fx.GraphModule:
    """The graph of a program that reads the cached keys of a prompt."""

    def program(x, past=None):
        return model(x) if past is None else past[0].sum()

    calls = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1]))
    return capture(program, *calls, config=PLAIN)[-1][0]


class TestDequantizeRest(expecttest.TestCase):
    def test_a_cache_by_head(self):
        changes = changes_by_pass(graph_of_a_reader(TinyAttention()), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["dequantize_rest"],
            """\
- sum_1 = l_past_0_.sum()
+ dequantize_default = dequantize(l_past_0_..., None, None, s)
+ sum_1 = dequantize_default.sum()""",
        )

    def test_a_cache_by_token(self):
        changes = changes_by_pass(graph_of_a_reader(LateTransposing()), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["dequantize_rest"],
            """\
- sum_1 = l_past_0_.sum()
+ dequantize_default = dequantize(l_past_0_..., None, None, s)
+ transpose = dequantize_default.transpose(1, 2)
+ contiguous = transpose.contiguous()
+ sum_1 = contiguous.sum()""",
        )
