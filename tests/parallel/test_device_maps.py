"""Models whose layers accelerate spreads over devices: a graph a layer, and each layer's cache where its layer is."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, innerq

from ..models.helpers import generate, prompt, tiny_llama

accelerate = pytest.importorskip("accelerate")
LAYERS = 2


def spread(model, *devices, **options):
    """The model with its layers on ``devices``, the last of which has what comes after the layers, too."""
    first, last = devices[0], devices[-1]
    places = {"model.embed_tokens": first, "model.rotary_emb": first, "model.norm": last, "lm_head": last}
    places |= {f"model.layers.{index}": device for index, device in enumerate(devices)}
    return accelerate.dispatch_model(model, places, force_hooks=True, **options)


def decoded(model, inputs, preset: str, during=None):
    """Tokens, logits and cache of two calls of ``generate``, the second going on with what the first has left."""
    torch._dynamo.reset()
    innerq(model, preset=preset)
    tokens, logits, cache = generate(model, inputs, 6)
    if during is not None:
        during(cache)
    ids = torch.cat((inputs["input_ids"], tokens.to(inputs["input_ids"])), 1)
    more = {"input_ids": ids, "attention_mask": torch.cat((inputs["attention_mask"], torch.ones_like(tokens)), 1)}
    again, later, cache = generate(model, more, 6, past_key_values=cache)
    return torch.cat((tokens, again), 1).cpu(), torch.cat((logits, later), 1).cpu(), cache


def assert_same(found, expected, error: float):
    for actual, wanted in zip(found[:2], expected[:2], strict=True):
        assert (actual - wanted).float().norm() <= error * wanted.float().norm()


def test_layers_offloaded_to_a_disk(cheap_inductor, tmp_path):
    model, inputs = tiny_llama(layers=LAYERS), prompt(2, 190, (0, 7))
    expected = decoded(model, inputs, "base")
    innerq(model, preset="lossless")
    eager = generate(model, inputs, 6)
    assert (expected[1][:, 1] - eager[1][:, 1]).norm() > 1e-3 * eager[1][:, 1].norm()  # quantized
    clear_reports()
    found = decoded(spread(model, "cpu", "disk", main_device="cpu", offload_dir=tmp_path), inputs, "base")
    assert_same(found, expected, 1e-5)
    assert all(type(layer.keys) is InnerQTensor for layer in found[2].layers)
    graphs = [report for report in compiled_graphs() if report.attentions]
    assert all(report.attentions == report.rewritten == 1 for report in graphs)  # a graph a layer
    assert [report.kind for report in graphs].count("prefill") == LAYERS


def test_a_cache_that_is_copied_between_steps(cheap_inductor, tmp_path):
    """As programs do that keep the caches of waiting conversations elsewhere."""
    model, inputs = tiny_llama(layers=LAYERS), prompt(1, 190)
    expected = decoded(model, inputs, "small")

    def elsewhere(cache):
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()

    assert_same(decoded(model, inputs, "small", elsewhere), expected, 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("second", ["cpu", "cuda:1"])
def test_two_devices(second):
    if second == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model, inputs = tiny_llama(layers=LAYERS), prompt(2, 190, (0, 7))
    expected = decoded(model, inputs, "base")
    devices = (torch.device("cuda:0"), torch.device(second))

    def elsewhere(cache):
        for layer, device in zip(cache.layers, devices, strict=True):
            assert layer.keys.device == layer.values.device == device
            layer.keys, layer.values = layer.keys.cpu().to(device), layer.values.cpu().to(device)

    found = decoded(spread(model, *devices, main_device=devices[0]), inputs, "base", elsewhere)
    assert_same(found, expected, 1e-3)
    for layer, device in zip(found[2].layers, devices, strict=True):
        assert type(layer.keys) is InnerQTensor and layer.keys.device == device
