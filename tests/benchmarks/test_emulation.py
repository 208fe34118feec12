"""The one-pass emulation that fidelity is measured with, against the product's cache, one token at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from innerq_compile import InnerQConfig, InnerQTensor

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from emulation.decode import Emulation, install, queries_of  # noqa: E402
from emulation.known import kivi_formats, paper_formats, preset_format  # noqa: E402

PROMPT, TOKENS = 180, 330


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        initializer_range=0.2,  # so that the attention weights are not almost equal
    )
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def steps(model, tokens, config) -> torch.Tensor:
    install(model)
    queries = queries_of(model, tokens[:, :PROMPT])
    model.set_attn_implementation("eager")
    cache = transformers.DynamicCache(config=model.config)
    model(tokens[:, :PROMPT], past_key_values=cache)
    for layer, query in zip(cache.layers, queries, strict=True):
        layer.keys = InnerQTensor.from_dense(layer.keys, config, role="key", queries=query)
        layer.values = InnerQTensor.from_dense(layer.values, config, role="value")
    logits = [model(tokens[:, i : i + 1], past_key_values=cache).logits[:, -1] for i in range(PROMPT, TOKENS)]
    assert all(isinstance(layer.keys, InnerQTensor) for layer in cache.layers)
    return torch.stack(logits, 1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("base", {}),
        ("small", {"sink": 8, "recent": 40}),
        ("tiny", {"group_size": 64, "scale_dtype": "float32"}),
        ("paper_base", {}),
    ],
)
def test_emulation_is_the_product(model, preset, changes):
    tokens = torch.randint(0, 97, (2, TOKENS))
    config = InnerQConfig.preset(preset, **changes)
    product = steps(model, tokens, config)
    emulation = Emulation(model, tokens, PROMPT)
    with torch.no_grad():
        emulated, full = emulation.logits(preset_format(preset, **changes)), emulation.logits(None)
    assert (full - product).abs().max() > 0.1, "quantization changed nothing: the test would not see a wrong emulation"
    # the last bit of a float may round a code up or down, which later tokens then attend to
    assert (emulated - product).abs().mean() < 1e-4 * (full - product).abs().mean() + 1e-5
    assert (emulated - product).abs().max() < 0.05 * (full - product).abs().max()


def test_bits_are_those_of_the_layout():
    bits = {f.name: f.effective_bits(2, 64) for f in paper_formats() + kivi_formats()}
    assert bits["paper innerq_hybrid 3/2"] == (3.5, 3.0)
    assert bits["kivi-like 2/2 g64"] == (2.5, 2.5)
    assert bits["kivi-like 4/4 g32"] == (5.0, 5.0)
    symmetric = preset_format("base", key_mode="symmetric", value_mode="symmetric", scale_dtype="float16")
    assert symmetric.effective_bits(2, 64) == bits["paper innerq_base 3/3"] == (3.5, 3.5)
