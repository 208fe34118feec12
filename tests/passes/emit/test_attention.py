"""Attention over a quantized cache as it stands in graphs: what is open of a mask, and how the output is laid out."""

from __future__ import annotations

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import InnerQConfig, innerq
from innerq_compile.kernels.internals.dynamo_graphs import copy_graph
from innerq_compile.passes import PIPELINE, PassContext
from tests.helpers.programs import TinyAttention, capture, code_of


class TwoLayers(nn.Module):
    """Two attentions with one mask, made of which tokens are real, ``[B, S]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TinyAttention() for _ in range(2))

    def forward(self, x, real, pasts=None):
        tokens, total = x.shape[1], real.shape[1]
        mask = real[:, None, None, :].expand(-1, -1, tokens, -1)
        if tokens > 1:
            mask = mask & torch.ones(tokens, total, dtype=torch.bool).tril(total - tokens)
        caches = []
        for layer, past in zip(self.layers, pasts or (None, None), strict=True):
            y, cache = layer(x, past, mask)
            x = x + y
            caches.append(cache)
        return x, caches


def real_tokens(length: int, padding: int = 0) -> torch.Tensor:
    return torch.arange(length) >= torch.tensor([0, padding])[:, None]


def graphs():
    torch.manual_seed(0)
    config = InnerQConfig.preset("base")
    calls = [lambda _: (torch.randn(2, 6, 32), real_tokens(6), None)]
    for length in (7, 8, 9):
        calls.append(lambda last, length=length: (torch.randn(2, 1, 32), real_tokens(length), last[1]))
    return config, [gm for gm, _ in capture(TwoLayers(), *calls, config=config)]


def masked_calls(gm) -> str:
    """The operators that read a mask, each with its mask and what is at its side."""
    lines = []
    for node in gm.graph.nodes:
        if node.target is torch.ops.innerq.open_from.default:
            lines.append(f"{node} = open_from{node.args}")
        if node.target is torch.ops.innerq.decode_attention.default:
            lines.append(f"{node} = decode_attention(..., {node.args[9]}, {node.args[10]}, ...)")
    return "\n".join(lines)


class TestOpenFrom(expecttest.TestCase):
    def test_once_for_all_layers(self):
        config, captured = graphs()
        gm = PIPELINE.run(copy_graph(captured[-1]), PassContext(config))
        self.assertExpectedInline(
            masked_calls(gm),
            """\
open_from_default = open_from(mask, l_pasts_0_0__state, 0)
decode_attention_default = decode_attention(..., mask, open_from_default, ...)
decode_attention_default_1 = decode_attention(..., mask, open_from_default, ...)""",
        )

    def test_reads_the_hoisted_mask_in_the_main_graph(self):
        config, captured = graphs()
        context = PassContext(config, static_lengths=True)
        gm = PIPELINE.run(copy_graph(captured[-1]), context)
        assert not context.notes, context.notes
        assert "open_from" not in code_of(context.prelude.graph)
        self.assertExpectedInline(
            masked_calls(gm),
            """\
open_from_default = open_from(hoisted_0, l_pasts_0_0__state, 0)
decode_attention_default = decode_attention(..., hoisted_0, open_from_default, ...)
decode_attention_default_1 = decode_attention(..., hoisted_0, open_from_default, ...)""",
        )


class Viewing(TinyAttention):
    """Views its output without a copy, which PyTorch's fused attention allows."""

    def forward(self, x, past=None, mask=None):
        batch, tokens, width = x.shape
        q, k, v = (f(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=past is None, enable_gqa=True)
        return out.transpose(1, 2).view(batch, tokens, width), (k, v)


@torch.no_grad()
def test_an_output_is_laid_out_as_the_programs(graphs_as_they_are):
    model = Viewing()
    compiled = torch.compile(model, backend="innerq", options={"preset": "lossless", "strict": True})
    xs = [torch.randn(2, tokens, 32) for tokens in (5, 3, 1, 4)]
    outputs = []
    for program in (model, compiled):
        past, length, found = None, 0, []
        for x in xs:
            length += x.shape[1]
            mask = None if past is None else torch.ones(x.shape[1], length, dtype=torch.bool).tril(length - x.shape[1])
            out, past = program(x, past, mask)
            found.append(out)
        outputs.append(found)
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-5, rtol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("inductor", [False, True])
def test_showing_hidden_tokens_fails_loudly(inductor, request):
    """The prompt hides three tokens, and a later step shows them: they have not been stored."""
    request.getfixturevalue("fresh_dynamo" if inductor else "graphs_as_they_are")
    model, reference = TwoLayers(), TwoLayers()
    reference.load_state_dict(model.state_dict())
    innerq(model, preset="lossless")
    steps = [torch.randn(2, 1, 32) for _ in range(2)]
    with torch.no_grad():
        prompt = torch.randn(2, 40, 32)
        _, pasts = model(prompt, real_tokens(40, 3))
        _, dense = reference(prompt, real_tokens(40, 3))
        out, pasts = model(steps[0], real_tokens(41, 3), pasts)
        torch.testing.assert_close(out, reference(steps[0], real_tokens(41, 3), dense)[0], rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="shows tokens that were hidden from the whole prompt"):
            model(steps[1], real_tokens(42, 0), pasts)
