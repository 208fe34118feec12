"""Keys and values that a prompt returns are quantized."""

from __future__ import annotations

import expecttest
import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQConfig, InnerQTensor
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.context import CacheSource
from tests.helpers.programs import TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


class Shared(TinyAttention):
    """Two attentions over the same keys and values, with a mask each."""

    def forward(self, x, mask, other):
        q, k, v = (f(x).view(1, -1, n, 16).transpose(1, 2) for f, n in ((self.q, 2), (self.k, 1), (self.v, 1)))
        outs = [
            F.scaled_dot_product_attention(q * (i + 1), k, v, m, enable_gqa=True) for i, m in enumerate((mask, other))
        ]
        return sum(outs), k, v


def graph_of_a_prompt(masks) -> torch.fx.GraphModule:
    return capture(Shared(), lambda _: (torch.randn(1, 5, 32), *masks), config=PLAIN)[-1][0]


class TestQuantizePrefill(expecttest.TestCase):
    def test_layers_that_share_keys_and_values(self):
        mask = torch.ones(1, 1, 5, 5).tril().bool()
        changes = changes_by_pass(graph_of_a_prompt((mask, mask)), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["quantize_prefill"],
            """\
+ any_1 = l_mask_.any(1)
+ any_2 = any_1.any(1)
+ cumsum = any_2.cumsum(-1)
+ eq = cumsum == 0
+ sum_1 = eq.sum(-1, dtype = torch.int32)
+ expand = sum_1.expand(1)
+ prefill_default = prefill(k, expand, None, None, 4)
+ getitem = prefill_default[0]
+ getitem_1 = prefill_default[1]
+ getitem_2 = prefill_default[2]
+ getitem_3 = prefill_default[3]
+ prefill_default_1 = prefill(v, expand, None, None, 4)
+ getitem_4 = prefill_default_1[0]
+ getitem_5 = prefill_default_1[1]
+ getitem_6 = prefill_default_1[2]
+ getitem_7 = prefill_default_1[3]""",
        )

    def test_masks_that_say_different_things_of_padding(self):
        mask = torch.ones(1, 1, 5, 5).tril().bool()
        changes = changes_by_pass(graph_of_a_prompt((mask, mask.clone())), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["quantize_prefill"],
            """\
+ new_zeros = l_x_.new_zeros((1,), dtype = torch.int32)
+ prefill_default = prefill(k, new_zeros, None, None, 4)
+ getitem = prefill_default[0]
+ getitem_1 = prefill_default[1]
+ getitem_2 = prefill_default[2]
+ getitem_3 = prefill_default[3]
+ prefill_default_1 = prefill(v, new_zeros, None, None, 4)
+ getitem_4 = prefill_default_1[0]
+ getitem_5 = prefill_default_1[1]
+ getitem_6 = prefill_default_1[2]
+ getitem_7 = prefill_default_1[3]""",
        )


def test_both_attentions_count_as_rewritten_and_make_one_cache():
    mask = torch.ones(1, 1, 5, 5).tril().bool()
    context = PIPELINE.rewrite(graph_of_a_prompt((mask, mask)), PLAIN).context
    assert len(context.rewritten) == 2 and len(context.quantized) == 2
    assert {use.source for uses in context.uses.values() for use in uses} == {CacheSource.FRESH}


class Older(TinyAttention):
    """Attends to dense tokens of an earlier call and to its own, and returns all of them as a new cache."""

    def forward(self, x, mask, past_k, past_v):
        q, k, v = (f(x).view(1, -1, n, 16).transpose(1, 2) for f, n in ((self.q, 2), (self.k, 1), (self.v, 1)))
        keys, values = torch.cat([past_k.contiguous(), k], 2), torch.cat([past_v.contiguous(), v], 2)
        return F.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=True), keys, values


def test_what_has_left_the_window_of_new_tokens_is_no_padding():
    mask = torch.arange(7)[None] > torch.arange(5, 7)[:, None] - 4
    inputs = torch.randn(1, 2, 32), mask[None, None], torch.randn(1, 1, 5, 16), torch.randn(1, 1, 5, 16)
    with torch.no_grad():
        _, keys, values = torch.compile(Older(), backend=innerq_backend, options={"preset": "lossless"})(*inputs)
    for cache, past in ((keys, inputs[2]), (values, inputs[3])):
        assert isinstance(cache, InnerQTensor)
        torch.testing.assert_close(cache.dequantize()[:, :, :5], past)
