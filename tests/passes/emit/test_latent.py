"""Latent attention over a quantized cache as it stands in graphs."""

from __future__ import annotations

import expecttest
import torch

from innerq_compile import InnerQConfig
from tests.helpers.decoders import WIDTH, LatentAttention
from tests.helpers.programs import capture, changes_by_pass


class TestGraphs(expecttest.TestCase):
    def test_step(self):
        torch.manual_seed(0)
        config = InnerQConfig.preset("lossless")
        calls = (
            lambda _: (torch.randn(2, 6, WIDTH), None),
            lambda last: (torch.randn(2, 1, WIDTH), last[1]),
        )
        captured = capture(LatentAttention(2), *calls, config=config)
        step = changes_by_pass(captured[-1][0], config)
        self.assertExpectedInline(
            step["rewrite_decode"],
            """\
+ constant_pad_nd = torch.constant_pad_nd(latent_1, (0, 12))
+ append__default = torch.ops.innerq.append_.default(l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, None, l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, rotary, constant_pad_nd, 'key:8:none:16:32:96:bfloat16', 'value:8:none:32:32:96:bfloat16:channel:12')
+ getitem = q[(Ellipsis, slice(16, 40, None))]
+ view_3 = l_self_modules_up_keys_parameters_weight_.view(4, 24, 20)
+ einsum = torch.functional.einsum('bhnd,hdr->bhnr', getitem, view_3)
+ constant_pad_nd_1 = torch.constant_pad_nd(einsum, (0, 12))
+ getitem_1 = q[(Ellipsis, slice(0, 16, None))]
+ decode_attention_default = torch.ops.innerq.decode_attention.default(getitem_1, l_past_1__codes, l_past_1__scales, l_past_1__window, l_past_1__state, l_past_0__codes, l_past_0__scales, l_past_0__window, l_past_0__state, None, None, None, 0.15811388300841897, 0.0, False, 'key:8:none:16:32:96:bfloat16', 'value:8:none:32:32:96:bfloat16:channel:12', 0, constant_pad_nd_1)
+ getitem_2 = decode_attention_default[(Ellipsis, slice(None, -12, None))]
+ contiguous = getitem_2.contiguous()
+ view_4 = l_self_modules_up_values_parameters_weight_.view(4, 12, 20)
+ einsum_1 = torch.functional.einsum('bhnr,hvr->bhnv', contiguous, view_4)
- squeeze = latent_2.squeeze(1)
- linear_2 = torch._C._nn.linear(squeeze, l_self_modules_up_keys_parameters_weight_, None)
- view_1 = linear_2.view(2, -1, 4, 24)
- keys = view_1.transpose(1, 2)
- squeeze_1 = latent_2.squeeze(1)
- linear_3 = torch._C._nn.linear(squeeze_1, l_self_modules_up_values_parameters_weight_, None)
- view_2 = linear_3.view(2, -1, 4, 12)
- values = view_2.transpose(1, 2)
- expand = rotary_1.expand(-1, 4, -1, -1)
- keys_1 = torch.cat((expand, keys), dim = -1)
- y = torch._C._nn.scaled_dot_product_attention(q, keys_1, values, attn_mask = None)
- transpose_3 = y.transpose(1, 2)
+ transpose_3 = einsum_1.transpose(1, 2)""",
        )
