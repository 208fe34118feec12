"""Attention over a buffer that is written in place reads a quantized shadow of it."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE
from tests.helpers.programs import BufferAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


def graph_of_a_step(mask) -> torch.fx.GraphModule:
    buffers = [torch.zeros(1, 1, 64, 16) for _ in range(2)]
    ((gm, _),) = capture(
        BufferAttention(), lambda _: (torch.randn(1, 1, 32), torch.tensor([7]), *buffers, mask), config=PLAIN
    )
    return gm


class TestRewriteBuffer(expecttest.TestCase):
    def test_a_step(self):
        changes = changes_by_pass(graph_of_a_step((torch.arange(64) <= 7)[None]), PLAIN, read=brief_code_of)
        assert [*changes] == ["captured", "rewrite_buffer"]
        self.assertExpectedInline(
            changes["rewrite_buffer"],
            """\
- scaled_dot_product_attention = scaled_dot_product_attention(q, l_keys_, l_values_, attn_mask = l_mask_, enable_gqa = True)
- return (scaled_dot_product_attention,)
+ getitem = l_position_[slice(0, 1, None)]
+ rewind__default = rewind_(l_keys__shadow..., l_values__shadow..., getitem)
+ append__default = append_(l_keys__shadow..., None, l_values__shadow..., k, v)
+ open_from_default = open_from(l_mask_, l_keys__shadow_state, 1)
+ decode_attention_default = decode_attention(q, l_keys__shadow..., l_values__shadow..., l_mask_, open_from_default, None, 0.25, 0.0, False)
+ arange = torch.arange(64, device = device(type='cpu'))
+ add = getitem + 1
+ ge = arange >= add
+ and_ = l_mask_ & ge
+ any_1 = and_.any()
+ logical_not = torch.logical_not(any_1)
+ _assert_async = torch._assert_async(logical_not, 'innerq: the mask shows tokens of a static cache that have not been written')
+ return (decode_attention_default,)""",
        )


def test_the_shadow_is_an_input_that_follows_both_buffers():
    result = PIPELINE.rewrite(graph_of_a_step((torch.arange(64) <= 7)[None]), PLAIN)
    ((buffers, shadow),) = result.context.shadows.items()
    assert [buffer.name for buffer in buffers] == ["l_keys_", "l_values_"]
    assert (shadow.key_use.buffer, shadow.value_use.buffer) == buffers
    assert shadow.key.format.role == "key" and shadow.value.format.role == "value"
    names = [node.name for node in result.gm.graph.find_nodes(op="placeholder")]
    assert [name for name in names if "shadow" in name] == [
        f"l_{side}__shadow_{inner}" for side in ("keys", "values") for inner in ("codes", "scales", "window", "state")
    ]


def test_a_mask_that_does_not_hide_what_is_not_written():
    result = PIPELINE.rewrite(graph_of_a_step(None), PLAIN)
    (reason,) = result.context.reasons
    assert reason.text == (
        "the attention reads the whole buffer without a mask, including tokens that have not been written"
    )
    assert not result.context.shadows and not result.context.rewritten
