"""Attention of a prompt whose mask is causal, but for padding: what the graph holds then, and that it says the same."""

from __future__ import annotations

import expecttest
import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE
from tests.helpers.programs import TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


class Padded(TinyAttention):
    """An attention that makes its mask as transformers does."""

    window = 0

    def forward(self, x, padding):
        count = torch.arange(x.shape[1])
        rows, columns = count[None, None, :, None], count[None, None, None, :]
        mask = columns <= rows
        if self.window:
            mask = mask & (columns > rows - self.window)
        mask = (mask & padding[:, None, None]).expand(x.shape[0], -1, x.shape[1], x.shape[1])
        return super().forward(x, None, mask)


class Cast(Padded):
    """Attends in a wider dtype."""

    def forward(self, x, padding):
        q, k, v = (f(x).view(2, -1, n, 16).transpose(1, 2) for f, n in ((self.q, 2), (self.k, 1), (self.v, 1)))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & padding[:, None, None]
        out = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask, enable_gqa=True)
        return out, (k, v)


def graph_of(module):
    width = module.heads * module.head_dim
    arguments = torch.randn(2, 9, width), torch.ones(2, 9, dtype=torch.bool)
    ((gm, _),) = capture(module, lambda _: arguments, config=PLAIN)
    return gm


def rewritten(module) -> bool:
    return "causal_attention" in PIPELINE.rewrite(graph_of(module), PLAIN).gm.code


class TestCausalPrefill(expecttest.TestCase):
    def test_a_prompt(self):
        changes = changes_by_pass(graph_of(Padded()), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["causal_prefill"],
            """\
- count = torch.arange(9)
- rows = count[(None, None, slice(None, None, None), None)]
- columns = count[(None, None, None, slice(None, None, None))]
- mask = columns <= rows
- and_ = mask & getitem_2
- mask_1 = and_.expand(2, -1, 9, 9)
+ getitem_11 = getitem_2[(slice(None, None, None), 0, 0)]
+ all_1 = getitem_11.all()
- out = scaled_dot_product_attention(q, k, v, attn_mask = mask_1, is_causal = False, enable_gqa = True)
+ causal_attention_default = causal_attention(q, k, v, getitem_11, all_1, None, 0.25)
- transpose_3 = out.transpose(1, 2)
+ transpose_3 = causal_attention_default.transpose(1, 2)""",
        )

    def test_a_prompt_with_a_window(self):
        module = Padded()
        module.window = 5
        changes = changes_by_pass(graph_of(module), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["causal_prefill"],
            """\
- count = torch.arange(9)
- rows = count[(None, None, slice(None, None, None), None)]
- columns = count[(None, None, None, slice(None, None, None))]
- mask = columns <= rows
- sub = rows - 5
- gt = columns > sub
- mask_1 = mask & gt
- and__1 = mask_1 & getitem_2
- mask_2 = and__1.expand(2, -1, 9, 9)
+ getitem_11 = getitem_2[(slice(None, None, None), 0, 0)]
+ all_1 = getitem_11.all()
- out = scaled_dot_product_attention(q, k, v, attn_mask = mask_2, is_causal = False, enable_gqa = True)
+ causal_attention_default = causal_attention(q, k, v, getitem_11, all_1, 5, 0.25)
- transpose_3 = out.transpose(1, 2)
+ transpose_3 = causal_attention_default.transpose(1, 2)""",
        )


@pytest.mark.parametrize("window", [0, 5, 9, 30])
@pytest.mark.parametrize("hidden", [0, 4])
def test_outputs_stay(window, hidden):
    module = Padded(heads=4, kv_heads=2)
    module.window = window
    assert rewritten(module)
    x, padding = torch.randn(2, 9, 64), torch.arange(9).expand(2, -1) >= torch.tensor([[hidden], [0]])
    with torch.no_grad():
        wanted = module(x, padding)[0]
        compiled = torch.compile(module, backend="innerq", options={"preset": "lossless"})
        out = compiled(x, padding)[0]
    rows = padding[..., None].expand_as(out)
    torch.testing.assert_close(out[rows], wanted[rows])


class Eager(Padded):
    def forward(self, x, padding):
        mask = torch.where(torch.ones(9, 9, dtype=torch.bool).tril() & padding[:, None, None], 0.0, -torch.inf)
        return TinyAttention.forward(self, x, None, mask)


@pytest.mark.parametrize("module", [Eager(form="eager"), Eager(), Cast()], ids=["eager", "added", "cast"])
def test_programs_that_it_leaves_alone(module):
    assert not rewritten(module)
