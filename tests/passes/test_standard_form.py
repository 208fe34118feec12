"""Query, masks and output of an attention in one layout, whatever the program's."""

from __future__ import annotations

import expecttest
import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.graph.values import shape
from tests.helpers.programs import BufferAttention, TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


class Flat(TinyAttention):
    """Batch and heads in one dimension, as bmm wants it; what is cached has them apart."""

    def forward(self, x, past=None, hidden=None, bias=None):
        batch, tokens, _ = x.shape
        q, k, v = (f(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        rows, total = batch * self.heads, k.shape[2]
        scores = torch.bmm(q.reshape(rows, tokens, -1), k.reshape(rows, total, -1).transpose(1, 2))
        if bias is not None:
            scores = scores.view(batch, self.heads, tokens, total) + bias
            scores = scores.masked_fill(hidden, torch.finfo(x.dtype).min).view(rows, tokens, total)
        out = torch.bmm(torch.softmax(scores, -1), v.reshape(rows, total, -1))
        return out.view(batch, self.heads, tokens, -1).transpose(1, 2).reshape(batch, tokens, -1), (k, v)


def graph_of_a_step() -> torch.fx.GraphModule:
    model = Flat(heads=2, kv_heads=2)
    hidden, bias = torch.zeros(1, 1, 1, 6).bool(), torch.randn(1, 2, 1, 6)
    calls = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1], hidden, bias))
    return capture(model, *calls, config=PLAIN)[-1][0]


class TestStandardForm(expecttest.TestCase):
    def test_a_step_with_bmm(self):
        changes = changes_by_pass(graph_of_a_step(), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["standard_form"],
            """\
+ logical_not = torch.logical_not(l_hidden_)
+ where = torch.where(logical_not, l_bias_, -inf)
+ reshape_4 = reshape.reshape((1, 2, 1, 16))
+ reshape_5 = out.reshape((1, 2, 1, 16))
+ reshape_6 = reshape_5.reshape((2, 1, 16))
- view_5 = out.view(1, 2, 1, -1)
+ view_5 = reshape_6.view(1, 2, 1, -1)""",
        )

    def test_a_mask_for_a_part_of_a_buffer(self):
        """It gets a column for each token of the buffer, where all can share it."""
        buffers, x = [torch.zeros(1, 1, 64, 16) for _ in range(2)], torch.randn(1, 1, 32)
        seen = (torch.arange(9) <= 7)[None]

        class Part(BufferAttention):
            def forward(self, x, position, keys, values, mask):
                q = self.q(x).view(1, 1, self.heads, -1).transpose(1, 2)
                keys[:1, ...].index_copy_(2, position, self.k(x)[:, None])
                values[:1, ...].index_copy_(2, position, self.v(x)[:, None])
                keys, values = keys[..., :9, :], values[:, :, :9]
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)

        ((gm, _),) = capture(Part(), lambda _: (x, torch.tensor([7]), *buffers, seen), config=PLAIN)
        changes = changes_by_pass(gm, PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["standard_form"],
            """\
+ new_full = l_mask_.new_full((1, 55), False)
+ cat = torch.cat([l_mask_, new_full], -1)""",
        )
        assert "rewrite_buffer" in changes


def test_what_the_form_says():
    context = PIPELINE.rewrite(graph_of_a_step(), PLAIN).context
    ((match, form),) = context.standard.items()
    assert shape(match.query) != shape(form.query) == (1, 2, 1, 16)
    assert shape(form.node) == (1, 2, 1, 16) and shape(form.mask) == (1, 2, 1, 6)
    assert form.sink_logits is None and context.rewritten == [match]
