"""Deep decoders with a break of the graph in every layer: each layer has graphs of its own, and a quantized cache.

What runs behind a break is one function for all layers, of which Dynamo makes a graph for each layer, because its place
in the cache is a constant, and for each form of a call: prompt and step, one sequence and several.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.generation import run
from tests.helpers.models import prompt
from tests.helpers.programs import TinyAttention

#: Graphs that each layer needs. As a limit, it is what few layers together reach, as many layers do with the usual one.
FORMS = 4
LAYERS = 3


class Layer(nn.Module):
    """Breaks the graph as programs do: a branch on what it computes, a number read from a tensor, a line printed."""

    def __init__(self, index: int, how: str) -> None:
        super().__init__()
        self.index, self.how, self.attention = index, how, TinyAttention()

    def forward(self, x, cache):
        x = x.tanh()
        if self.how == "branch" and x.abs().max() > 1:
            x = x / 2
        if self.how == "item":
            x = x + round(x.abs().max().item())
        if self.how == "print":
            print(end="")
        out, cache[self.index] = self.attention(x, cache[self.index])
        return x + out


class Decoder(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(index, how) for index in range(LAYERS))

    def forward(self, x, cache):
        for layer in self.layers:
            x = layer(x, cache)
        return x


def as_a_whole(model, backend):
    return innerq(model, preset="lossless")


def by_name(model, backend):
    return torch.compile(model, **backend)


def layers_by_name(model, backend):
    for layer in model.layers:
        layer.compile(**backend)
    return model


def layers_by_innerq(model, backend):
    for layer in model.layers:
        innerq(layer, preset="lossless")
    return model


@torch.no_grad()
def request(model: Any, batch: int, tokens: int) -> tuple[list[torch.Tensor], list[Any]]:
    """Outputs of a prompt and of three steps, and the caches of all layers."""
    torch.manual_seed(tokens)
    cache: list[Any] = [None] * LAYERS
    return [model(torch.randn(batch, count, 32), cache) for count in (tokens, 1, 1, 1)], cache


@pytest.mark.parametrize("way", [as_a_whole, by_name, layers_by_name, layers_by_innerq])
@pytest.mark.parametrize("how", ["branch", "item", "print"])
@pytest.mark.sampled(4)
def test_breaks_in_every_layer(way, how, graphs_as_they_are, caplog):
    torch.manual_seed(0)
    model = Decoder(how).eval()
    requests = [(1, 40), (1, 57), (2, 50), (1, 71), (2, 66)]
    expected = [request(model, *shape)[0] for shape in requests]
    compiled = []
    # The first number that a frame goes on with behind `item()` is a constant for Dynamo, all others are a symbol.
    numbers = 1 if how == "item" else 0
    with torch._dynamo.config.patch(recompile_limit=FORMS + numbers):
        model = way(model, {"backend": "innerq", "options": {"preset": "lossless"}})
        for shape, outputs in zip(requests, expected, strict=True):
            found, cache = request(model, *shape)
            torch.testing.assert_close(found, outputs, atol=1e-4, rtol=1e-4)
            assert all(isinstance(one, InnerQTensor) for layer in cache for one in layer)
            compiled.append(len(compiled_graphs()))
    assert compiled[1] == compiled[0] + numbers, "lengths are symbols"
    assert compiled[2] == compiled[3] == compiled[4], "lengths are symbols"
    kinds = [str(report.kind) for report in compiled_graphs()]
    assert kinds.count("prefill") - numbers == kinds.count("decode") == 2 * LAYERS
    assert "uncompiled" not in caplog.text


class Apart(TinyAttention):
    """The graph ends between the cache and the attention that reads it."""

    def forward(self, x, past=None):
        q, k, v = (layer(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        torch._dynamo.graph_break()
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True), (k, v)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_a_break_between_a_cache_and_its_attention():
    """Nothing is quantized, neither for a moment, and the reason says what it would take."""

    @torch.no_grad()
    def story(model):
        torch.manual_seed(0)
        found, cache = [], None
        for count in (40, 1, 1, 1):
            out, cache = model(torch.randn(1, count, 32), cache)
            assert not any(isinstance(side, InnerQTensor) for side in cache)
            found.append(out)
        return torch.cat(found, 2)

    model = Apart().eval()
    expected = story(model)
    torch.testing.assert_close(story(innerq(model, preset="base")), expected, atol=1e-5, rtol=1e-5)
    of_attention = [report for report in compiled_graphs() if report.attentions]
    assert of_attention
    for report in of_attention:
        assert [reason.text for reason in report.reasons] == [
            "keys: they are an input of the graph that is not written in it, as where a graph break lies between a "
            "cache and its attention"
        ]


# --- real models ------------------------------------------------------------------------------------------------------

_SIZES = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
_EXPERTS: dict[str, Any] = {
    "Dbrx": lambda layers: {
        **{"d_model": 64, "n_heads": 4, "n_layers": layers, "max_seq_len": 256},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "JetMoe": lambda layers: {
        **{"hidden_size": 64, "num_hidden_layers": layers, "num_key_value_heads": 2, "kv_channels": 16},
        **{"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    },
    "LongcatFlash": lambda layers: {
        **{"hidden_size": 64, "num_layers": layers, "num_attention_heads": 4, "ffn_hidden_size": 64, "head_dim": 8},
        **{"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
        **{"moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 32},
    },
}


@functools.cache
def experts(name: str, layers: int) -> torch.nn.Module:
    """A random model whose routing of tokens to experts breaks the graph in every layer."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**_SIZES, **_EXPERTS[name](layers))
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("way", ["innerq", "name"])
@pytest.mark.parametrize("name", _EXPERTS)
def test_experts(name, way, graphs_as_they_are, caplog):
    """24 layers with caches, each in a graph of its own."""
    if not hasattr(transformers, f"{name}ForCausalLM"):
        pytest.skip("this transformers has no such family")
    model = experts(name, 12 if name == "LongcatFlash" else 24)  # two attentions in a layer
    requests = [prompt(1, 40), prompt(1, 57), prompt(2, 50, (0, 9)), prompt(1, 71), prompt(2, 66, (5, 0))]
    expected = [run(model, inputs, 5).sequences for inputs in requests]
    options = {"preset": "lossless"}
    model = innerq(model, **options) if way == "innerq" else torch.compile(model, backend="innerq", options=options)
    compiled = []
    for inputs, tokens in zip(requests, expected, strict=True):
        found = run(model, inputs, 5)
        assert torch.equal(found.sequences, tokens)
        assert len(found.past_key_values.layers) == 24
        assert all(isinstance(layer.keys, InnerQTensor) for layer in found.past_key_values.layers)
        compiled.append(len(compiled_graphs()))
    assert compiled[2] == compiled[3] == compiled[4], "further prompts compile nothing"
    assert "uncompiled" not in caplog.text
