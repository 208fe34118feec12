"""Cache write and attention of a step, on the quantized cache. The plain cases are in test_pipeline_graphs.py."""

from __future__ import annotations

import expecttest
import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE
from tests.helpers.programs import TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


class Twice(TinyAttention):
    """Two attentions over the same cache, the second with a mask."""

    def forward(self, x, past=None, mask=None):
        q, k, v = (f(x).view(1, -1, n, 16).transpose(1, 2) for f, n in ((self.q, 2), (self.k, 1), (self.v, 1)))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        outs = [F.scaled_dot_product_attention(query, k, v, m, enable_gqa=True) for query, m in ((q, None), (-q, mask))]
        return torch.cat(outs), (k, v)


class Halves(TinyAttention):
    """Differential attention: all heads of keys meet those of each half of the values."""

    def __init__(self) -> None:
        super().__init__(heads=2, kv_heads=2)

    def forward(self, x, past=None, mask=None):
        q, k, v = (f(x).view(1, -1, 2, 16).transpose(1, 2) for f in (self.q, self.k, self.v))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        halves = (half.repeat(1, 2, 1, 1) for half in v.chunk(2, 1))
        return torch.cat([F.scaled_dot_product_attention(q, k, half, mask) for half in halves]), (k, v)


class Merged(TinyAttention):
    """One softmax over a cache that grows and one that does not."""

    def forward(self, x, past=None, mask=None):
        q, k, v = (f(x).view(1, -1, n, 16).transpose(1, 2) for f, n in ((self.q, 2), (self.k, 1), (self.v, 1)))
        past = past or (k[:, :, :0], v[:, :, :0], k * 2.0, v * 2.0)
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        sides = torch.cat([k, past[2]], 2), torch.cat([v, past[3]], 2)
        return F.scaled_dot_product_attention(q, *sides, mask, enable_gqa=True), (k, v, *past[2:])


def graph_of_two_caches(config: InnerQConfig) -> torch.fx.GraphModule:
    mask = torch.ones(1, 1, 1, 11).bool()
    calls = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1], mask))
    return capture(Merged(), *calls, config=config)[-1][0]


def graph_of_a_step(program: type[TinyAttention] = Twice) -> torch.fx.GraphModule:
    mask = torch.ones(1, 1, 1, 6).bool()
    calls = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1], mask))
    return capture(program(), *calls, config=PLAIN)[-1][0]


class TestRewriteDecode(expecttest.TestCase):
    def test_two_attentions_over_one_cache(self):
        changes = changes_by_pass(graph_of_a_step(), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["rewrite_decode"],
            """\
+ append__default = append_(l_past_0_..., None, l_past_1_..., k, v)
- scaled_dot_product_attention = scaled_dot_product_attention(q, k_1, v_1, None, enable_gqa = True)
- scaled_dot_product_attention_1 = scaled_dot_product_attention(query, k_1, v_1, l_mask_, enable_gqa = True)
- cat_2 = torch.cat([scaled_dot_product_attention, scaled_dot_product_attention_1])
+ decode_attention_default = decode_attention(q, l_past_0_..., l_past_1_..., None, None, None, 0.25, 0.0, False)
+ open_from_default = open_from(l_mask_, l_past_0__state, 1)
+ decode_attention_default_1 = decode_attention(query, l_past_0_..., l_past_1_..., l_mask_, open_from_default, None, 0.25, 0.0, False)
+ cat_2 = torch.cat([decode_attention_default, decode_attention_default_1])""",
        )

    def test_each_half_of_the_value_heads(self):
        changes = changes_by_pass(graph_of_a_step(Halves), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["rewrite_decode"],
            """\
+ open_from_default = open_from(l_mask_, l_past_0__state, 0)
+ append__default = append_(l_past_0_..., None, l_past_1_..., k, v)
+ decode_attention_default = decode_attention(q, l_past_0_..., l_past_1_..., l_mask_, open_from_default, None, 0.25, 0.0, False, 0, None, (0, 1))
+ decode_attention_default_1 = decode_attention(q, l_past_0_..., l_past_1_..., l_mask_, open_from_default, None, 0.25, 0.0, False, 0, None, (1, 1))
+ cat_2 = torch.cat([decode_attention_default, decode_attention_default_1])
- chunk = v_1.chunk(2, 1)
- half = chunk[0]
- half_2 = chunk[1]
- half_1 = half.repeat(1, 2, 1, 1)
- scaled_dot_product_attention = scaled_dot_product_attention(q, k_1, half_1, l_mask_)
- half_3 = half_2.repeat(1, 2, 1, 1)
- scaled_dot_product_attention_1 = scaled_dot_product_attention(q, k_1, half_3, l_mask_)
- cat_2 = torch.cat([scaled_dot_product_attention, scaled_dot_product_attention_1])""",
        )

    def test_two_caches_in_one_softmax(self):
        changes = changes_by_pass(graph_of_two_caches(PLAIN), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["rewrite_decode"],
            """\
+ open_from_default = open_from(getitem, l_past_0__state, 0)
- cat_2 = torch.cat([k_1, l_past_2_], 2)
- cat_3 = torch.cat([v_1, l_past_3_], 2)
- scaled_dot_product_attention = scaled_dot_product_attention(q, cat_2, cat_3, l_mask_, enable_gqa = True)
- return (scaled_dot_product_attention, k_1, v_1)
+ append__default = append_(l_past_0_..., None, l_past_1_..., k, v)
+ decode_attention_lse_default = decode_attention_lse(q, l_past_0_..., l_past_1_..., getitem, open_from_default, None, 0.25, 0.0, False)
+ getitem_2 = decode_attention_lse_default[0]
+ getitem_3 = decode_attention_lse_default[1]
+ open_from_default_1 = open_from(getitem_1, l_past_2__state, 1)
+ decode_attention_lse_default_1 = decode_attention_lse(q, l_past_2_..., l_past_3_..., getitem_1, open_from_default_1, None, 0.25, 0.0, False)
+ getitem_4 = decode_attention_lse_default_1[0]
+ getitem_5 = decode_attention_lse_default_1[1]
+ maximum = torch.maximum(getitem_3, getitem_5)
+ sub = getitem_3 - maximum
+ nan_to_num = sub.nan_to_num()
+ exp = nan_to_num.exp()
+ unsqueeze = exp.unsqueeze(-1)
+ mul_2 = getitem_2 * unsqueeze
+ sub_1 = getitem_5 - maximum
+ nan_to_num_1 = sub_1.nan_to_num()
+ exp_1 = nan_to_num_1.exp()
+ add_2 = exp + exp_1
+ unsqueeze_1 = exp_1.unsqueeze(-1)
+ mul_3 = getitem_4 * unsqueeze_1
+ add_3 = mul_2 + mul_3
+ unsqueeze_2 = add_2.unsqueeze(-1)
+ truediv = add_3 / unsqueeze_2
+ to = truediv.to(torch.float32)
+ return (to, k_1, v_1)""",
        )

    def test_keys_without_their_mean(self):
        """The two caches have different ones, which the sums of exponentials have to tell."""
        centred = InnerQConfig.preset("base", normalize_keys=False, key_mode="hybrid", value_mode="hybrid")
        changes = changes_by_pass(graph_of_two_caches(centred), centred, read=brief_code_of)
        added = [line for line in changes["rewrite_decode"].splitlines() if "mean" in line or "add" in line]
        self.assertExpectedInline(
            "\n".join(added),
            """\
+ repeat_interleave = l_past_0__mean.repeat_interleave(2, 1)
+ add_2 = getitem_3 + mul_3
+ repeat_interleave_1 = l_past_2__mean.repeat_interleave(2, 1)
+ add_3 = getitem_5 + mul_5
+ maximum = torch.maximum(add_2, add_3)
+ sub = add_2 - maximum
+ sub_1 = add_3 - maximum
+ add_4 = exp + exp_1
+ add_5 = mul_6 + mul_7
+ unsqueeze_4 = add_4.unsqueeze(-1)
+ truediv = add_5 / unsqueeze_4""",
        )


@pytest.mark.parametrize("program", [Twice, Halves])
def test_it_is_appended_to_once(program):
    context = PIPELINE.rewrite(graph_of_a_step(program), PLAIN).context
    assert len(context.rewritten) == 2 and len(context.appended) == 2
    assert [appended.count for appended in context.appended.values()] == [1, 1]
