"""Goldens: the prefill and the decode graph of a tiny decoder, and what each pass changes in them.

Update them with ``EXPECTTEST_ACCEPT=1 pytest tests/passes``.
"""

from __future__ import annotations

import functools

import expecttest
import torch

from innerq_compile import InnerQConfig
from tests.helpers.programs import LateTransposing, TinyAttention, capture, changes_by_pass


@functools.cache
def graphs(form: str, program: type[TinyAttention] = TinyAttention) -> tuple[dict[str, str], dict[str, str]]:
    torch.manual_seed(0)
    model = program(form=form)
    config = InnerQConfig.preset("base")
    mask = torch.ones(1, 1, 5, 5).tril()
    mask = mask.bool() if form == "sdpa" else mask.log()
    captured = capture(
        model,
        lambda _: (torch.randn(1, 5, 32), None, mask),
        lambda last: (torch.randn(1, 1, 32), last[1]),
        config=config,
    )
    assert len(captured) == 2
    return tuple(changes_by_pass(gm, config) for gm, _ in captured)


class TestSdpaGraphs(expecttest.TestCase):
    def test_prefill(self):
        prefill, _ = graphs("sdpa")
        assert list(prefill) == ["captured", "quantize_prefill", "plan_outputs"]
        self.assertExpectedInline(
            prefill["captured"],
            """\
    linear = torch._C._nn.linear(l_x_, l_self_modules_q_parameters_weight_, None)
    view = linear.view(1, 5, 2, 16)
    q = view.transpose(1, 2)
    linear_1 = torch._C._nn.linear(l_x_, l_self_modules_k_parameters_weight_, None)
    view_1 = linear_1.view(1, 5, 1, 16)
    k = view_1.transpose(1, 2)
    linear_2 = torch._C._nn.linear(l_x_, l_self_modules_v_parameters_weight_, None)
    view_2 = linear_2.view(1, 5, 1, 16)
    v = view_2.transpose(1, 2)
    out = torch._C._nn.scaled_dot_product_attention(q, k, v, attn_mask = l_mask_, is_causal = False, enable_gqa = True)
    transpose_3 = out.transpose(1, 2)
    reshape = transpose_3.reshape(1, 5, -1)
    return (reshape, k, v)""",
        )
        self.assertExpectedInline(
            prefill["quantize_prefill"],
            """\
+ any_1 = l_mask_.any(1)
+ any_2 = any_1.any(1)
+ cumsum = any_2.cumsum(-1)
+ eq = cumsum == 0
+ sum_1 = eq.sum(-1, dtype = torch.int32)
+ expand = sum_1.expand(1)
+ query_moments_default = torch.ops.innerq.query_moments.default(q, k, expand)
+ norm_divisor_default = torch.ops.innerq.norm_divisor.default(query_moments_default, 'channel')
+ key_statistics_default = torch.ops.innerq.key_statistics.default(k, expand, True, True, 'channel', norm_divisor_default)
+ getitem = key_statistics_default[0]
+ getitem_1 = key_statistics_default[1]
+ query_profile_default = torch.ops.innerq.query_profile.default(query_moments_default, getitem_1, 16)
+ prefill_default = torch.ops.innerq.prefill.default(k, expand, getitem, getitem_1, 4, 'key:3:steered:16:32:96:pair8', query_profile_default)
+ getitem_2 = prefill_default[0]
+ getitem_3 = prefill_default[1]
+ getitem_4 = prefill_default[2]
+ getitem_5 = prefill_default[3]
+ prefill_default_1 = torch.ops.innerq.prefill.default(v, expand, None, None, 4, 'value:3:anchored:32:32:96:pair8')
+ getitem_6 = prefill_default_1[0]
+ getitem_7 = prefill_default_1[1]
+ getitem_8 = prefill_default_1[2]
+ getitem_9 = prefill_default_1[3]""",
        )
        self.assertExpectedInline(
            prefill["plan_outputs"],
            """\
- return (reshape, k, v)
+ return (reshape, getitem_2, getitem_3, getitem_4, getitem_5, query_profile_default, getitem, getitem_1, getitem_6, getitem_7, getitem_8, getitem_9)""",
        )

    def test_decode(self):
        _, decode = graphs("sdpa")
        assert list(decode) == ["captured", "rewrite_decode", "fold_key_norm", "plan_outputs"]
        self.assertExpectedInline(
            decode["captured"],
            """\
    linear = torch._C._nn.linear(l_x_, l_self_modules_q_parameters_weight_, None)
    view = linear.view(1, 1, 2, 16)
    q = view.transpose(1, 2)
    linear_1 = torch._C._nn.linear(l_x_, l_self_modules_k_parameters_weight_, None)
    view_1 = linear_1.view(1, 1, 1, 16)
    k = view_1.transpose(1, 2)
    linear_2 = torch._C._nn.linear(l_x_, l_self_modules_v_parameters_weight_, None)
    view_2 = linear_2.view(1, 1, 1, 16)
    v = view_2.transpose(1, 2)
    k_1 = torch.cat([l_past_0_, k], dim = 2)
    v_1 = torch.cat([l_past_1_, v], dim = 2)
    out = torch._C._nn.scaled_dot_product_attention(q, k_1, v_1, attn_mask = None, is_causal = False, enable_gqa = True)
    transpose_3 = out.transpose(1, 2)
    reshape = transpose_3.reshape(1, 1, -1)
    return (reshape, k_1, v_1)""",
        )
        self.assertExpectedInline(
            decode["rewrite_decode"],
            """\
- out = torch._C._nn.scaled_dot_product_attention(q, k_1, v_1, attn_mask = None, is_causal = False, enable_gqa = True)
+ append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_0__query_profile, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, k, v, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')
+ decode_attention_default = torch.ops.innerq.decode_attention.default(q, l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, None, None, None, 0.25, 0.0, False, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')
- transpose_3 = out.transpose(1, 2)
+ transpose_3 = decode_attention_default.transpose(1, 2)""",
        )
        self.assertExpectedInline(
            decode["fold_key_norm"],
            """\
+ to_4 = view.to(torch.float32)
+ repeat_interleave = l_past_0__norm.repeat_interleave(2, 1)
+ unsqueeze_2 = repeat_interleave.unsqueeze(1)
+ mul = to_4 * unsqueeze_2
+ to_5 = mul.to(torch.float32)
- q = view.transpose(1, 2)
+ q = to_5.transpose(1, 2)
+ to = view_1.to(torch.float32)
+ unsqueeze = l_past_0__norm.unsqueeze(2)
+ truediv = to / unsqueeze
+ to_1 = truediv.to(torch.float32)
- k = view_1.transpose(1, 2)
+ k = to_1.transpose(1, 2)
+ truediv_1 = l_past_0__mean / l_past_0__norm
+ to_2 = k.to(torch.float32)
+ unsqueeze_1 = truediv_1.unsqueeze(2)
+ sub = to_2 - unsqueeze_1
+ to_3 = sub.to(torch.float32)
- append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_0__query_profile, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, k, v, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')
+ append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_0__query_profile, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, to_3, v, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')""",
        )
        self.assertExpectedInline(
            decode["plan_outputs"],
            """\
- k_1 = torch.cat([l_past_0_, k], dim = 2)
- v_1 = torch.cat([l_past_1_, v], dim = 2)
- return (reshape, k_1, v_1)
+ return (reshape,)""",
        )


class TestEagerGraphs(expecttest.TestCase):
    def test_prefill(self):
        prefill, _ = graphs("eager")
        assert list(prefill) == ["captured", "quantize_prefill", "plan_outputs"]
        self.assertExpectedInline(
            prefill["quantize_prefill"],
            """\
+ gt = l_mask_ > -3.4028234663852886e+38
+ any_1 = gt.any(1)
+ any_2 = any_1.any(1)
+ cumsum = any_2.cumsum(-1)
+ eq = cumsum == 0
+ sum_1 = eq.sum(-1, dtype = torch.int32)
+ expand_2 = sum_1.expand(1)
+ query_moments_default = torch.ops.innerq.query_moments.default(q, k, expand_2)
+ norm_divisor_default = torch.ops.innerq.norm_divisor.default(query_moments_default, 'channel')
+ key_statistics_default = torch.ops.innerq.key_statistics.default(k, expand_2, True, True, 'channel', norm_divisor_default)
+ getitem_2 = key_statistics_default[0]
+ getitem_3 = key_statistics_default[1]
+ query_profile_default = torch.ops.innerq.query_profile.default(query_moments_default, getitem_3, 16)
+ prefill_default = torch.ops.innerq.prefill.default(k, expand_2, getitem_2, getitem_3, 4, 'key:3:steered:16:32:96:pair8', query_profile_default)
+ getitem_4 = prefill_default[0]
+ getitem_5 = prefill_default[1]
+ getitem_6 = prefill_default[2]
+ getitem_7 = prefill_default[3]
+ prefill_default_1 = torch.ops.innerq.prefill.default(v, expand_2, None, None, 4, 'value:3:anchored:32:32:96:pair8')
+ getitem_8 = prefill_default_1[0]
+ getitem_9 = prefill_default_1[1]
+ getitem_10 = prefill_default_1[2]
+ getitem_11 = prefill_default_1[3]""",
        )

    def test_decode(self):
        _, decode = graphs("eager")
        assert list(decode) == ["captured", "rewrite_decode", "fold_key_norm", "plan_outputs"]
        self.assertExpectedInline(
            decode["captured"],
            """\
    linear = torch._C._nn.linear(l_x_, l_self_modules_q_parameters_weight_, None)
    view = linear.view(1, 1, 2, 16)
    q = view.transpose(1, 2)
    linear_1 = torch._C._nn.linear(l_x_, l_self_modules_k_parameters_weight_, None)
    view_1 = linear_1.view(1, 1, 1, 16)
    k = view_1.transpose(1, 2)
    linear_2 = torch._C._nn.linear(l_x_, l_self_modules_v_parameters_weight_, None)
    view_2 = linear_2.view(1, 1, 1, 16)
    v = view_2.transpose(1, 2)
    k_1 = torch.cat([l_past_0_, k], dim = 2)
    v_1 = torch.cat([l_past_1_, v], dim = 2)
    getitem = k_1[(slice(None, None, None), slice(None, None, None), None)]
    expand = getitem.expand(-1, -1, 2, -1, -1)
    k_2 = expand.reshape(1, 2, -1, 16)
    getitem_1 = v_1[(slice(None, None, None), slice(None, None, None), None)]
    expand_1 = getitem_1.expand(-1, -1, 2, -1, -1)
    v_2 = expand_1.reshape(1, 2, -1, 16)
    transpose_3 = k_2.transpose(2, 3)
    matmul = torch.matmul(q, transpose_3)
    scores = matmul * 0.25
    softmax = torch.softmax(scores, dim = -1, dtype = torch.float32)
    weights = softmax.to(torch.float32)
    out = torch.matmul(weights, v_2)
    transpose_4 = out.transpose(1, 2)
    reshape_2 = transpose_4.reshape(1, 1, -1)
    return (reshape_2, k_1, v_1)""",
        )
        self.assertExpectedInline(
            decode["rewrite_decode"],
            """\
+ append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_0__query_profile, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, k, v, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')
+ decode_attention_default = torch.ops.innerq.decode_attention.default(q, l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, None, None, None, 0.25, 0.0, False, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')
- getitem = k_1[(slice(None, None, None), slice(None, None, None), None)]
- expand = getitem.expand(-1, -1, 2, -1, -1)
- k_2 = expand.reshape(1, 2, -1, 16)
- getitem_1 = v_1[(slice(None, None, None), slice(None, None, None), None)]
- expand_1 = getitem_1.expand(-1, -1, 2, -1, -1)
- v_2 = expand_1.reshape(1, 2, -1, 16)
- transpose_3 = k_2.transpose(2, 3)
- matmul = torch.matmul(q, transpose_3)
- scores = matmul * 0.25
- softmax = torch.softmax(scores, dim = -1, dtype = torch.float32)
- weights = softmax.to(torch.float32)
- out = torch.matmul(weights, v_2)
- transpose_4 = out.transpose(1, 2)
+ transpose_4 = decode_attention_default.transpose(1, 2)""",
        )


class TestGraphsOfCachesAsBatchTokensHeads(expecttest.TestCase):
    def test_prefill(self):
        prefill, _ = graphs("sdpa", LateTransposing)
        assert prefill["captured"].endswith("return (reshape, k, v)")
        self.assertExpectedInline(
            prefill["quantize_prefill"],
            """\
+ any_1 = l_mask_.any(1)
+ any_2 = any_1.any(1)
+ cumsum = any_2.cumsum(-1)
+ eq = cumsum == 0
+ sum_1 = eq.sum(-1, dtype = torch.int32)
+ expand = sum_1.expand(1)
+ transpose = k.transpose(1, 2)
+ query_moments_default = torch.ops.innerq.query_moments.default(q, transpose, expand)
+ norm_divisor_default = torch.ops.innerq.norm_divisor.default(query_moments_default, 'channel')
+ key_statistics_default = torch.ops.innerq.key_statistics.default(transpose, expand, True, True, 'channel', norm_divisor_default)
+ getitem = key_statistics_default[0]
+ getitem_1 = key_statistics_default[1]
+ query_profile_default = torch.ops.innerq.query_profile.default(query_moments_default, getitem_1, 16)
+ prefill_default = torch.ops.innerq.prefill.default(transpose, expand, getitem, getitem_1, 4, 'key:3:steered:16:32:96:pair8', query_profile_default)
+ getitem_2 = prefill_default[0]
+ getitem_3 = prefill_default[1]
+ getitem_4 = prefill_default[2]
+ getitem_5 = prefill_default[3]
+ transpose_4 = v.transpose(1, 2)
+ prefill_default_1 = torch.ops.innerq.prefill.default(transpose_4, expand, None, None, 4, 'value:3:anchored:32:32:96:pair8')
+ getitem_6 = prefill_default_1[0]
+ getitem_7 = prefill_default_1[1]
+ getitem_8 = prefill_default_1[2]
+ getitem_9 = prefill_default_1[3]""",
        )

    def test_decode(self):
        _, decode = graphs("sdpa", LateTransposing)
        self.assertExpectedInline(
            decode["captured"],
            """\
    linear = torch._C._nn.linear(l_x_, l_self_modules_q_parameters_weight_, None)
    view = linear.view(1, 1, 2, 16)
    q = view.transpose(1, 2)
    linear_1 = torch._C._nn.linear(l_x_, l_self_modules_k_parameters_weight_, None)
    k = linear_1.view(1, 1, 1, 16)
    linear_2 = torch._C._nn.linear(l_x_, l_self_modules_v_parameters_weight_, None)
    v = linear_2.view(1, 1, 1, 16)
    k_1 = torch.cat([l_past_0_, k], dim = 1)
    v_1 = torch.cat([l_past_1_, v], dim = 1)
    keys = k_1.transpose(1, 2)
    values = v_1.transpose(1, 2)
    out = torch._C._nn.scaled_dot_product_attention(q, keys, values, attn_mask = None, is_causal = False, enable_gqa = True)
    transpose_3 = out.transpose(1, 2)
    reshape = transpose_3.reshape(1, 1, -1)
    return (reshape, k_1, v_1)""",
        )
        self.assertExpectedInline(
            decode["rewrite_decode"],
            """\
- keys = k_1.transpose(1, 2)
- values = v_1.transpose(1, 2)
+ transpose = k.transpose(1, 2)
- out = torch._C._nn.scaled_dot_product_attention(q, keys, values, attn_mask = None, is_causal = False, enable_gqa = True)
- transpose_3 = out.transpose(1, 2)
+ transpose_4 = v.transpose(1, 2)
+ append__default = torch.ops.innerq.append_.default(l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_0__query_profile, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, transpose, transpose_4, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')
+ decode_attention_default = torch.ops.innerq.decode_attention.default(q, l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, None, None, None, 0.25, 0.0, False, 'key:3:steered:16:32:96:pair8', 'value:3:anchored:32:32:96:pair8')
+ transpose_3 = decode_attention_default.transpose(1, 2)""",
        )
        self.assertExpectedInline(
            decode["plan_outputs"],
            """\
- k_1 = torch.cat([l_past_0_, k], dim = 1)
- v_1 = torch.cat([l_past_1_, v], dim = 1)
- return (reshape, k_1, v_1)
+ return (reshape,)""",
        )
