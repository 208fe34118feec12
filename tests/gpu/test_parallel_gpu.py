"""More than one device: ranks over NCCL, layers on two GPUs or on a GPU and the CPU, caches moved between steps."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.models import assert_close_in_rms, assert_same_tokens, generate, prompt, tiny_llama
from tests.helpers.torchrun import Ranks

GPUS = torch.cuda.device_count()

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")]
two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")

NEW, LAYERS = 40, 2


@two_gpus
@pytest.mark.parametrize(
    ("dtype", "mode"),
    [(torch.float32, None), (torch.float16, "reduce-overhead"), (torch.bfloat16, "reduce-overhead")],
    ids=str,
)
def test_tensor_parallel(dtype, mode, tmp_path):
    from transformers import AutoModelForCausalLM

    # transformers 5.17 gathers logits only where the ranks divide the vocabulary
    model = tiny_llama(heads=8 * GPUS, kv_heads=2 * GPUS, head_dim=64, layers=LAYERS, vocab=64)
    model.save_pretrained(tmp_path / "model")
    inputs = prompt(2, 250, (0, 41))
    mode = {} if mode is None else {"mode": mode}
    common = {"model": str(tmp_path / "model"), "inputs": inputs, "new": NEW, "inductor": True}
    common["dtype"] = str(dtype).removeprefix("torch.")
    cases = [{**common, "options": {"preset": preset, **mode}} for preset in ("lossless", "base")]
    ranks = Ranks(cases, GPUS, tmp_path, device="cuda")  # runs while this process computes the expected results

    def alone(**options):
        torch._dynamo.reset()
        model = AutoModelForCausalLM.from_pretrained(common["model"], dtype=dtype).eval().cuda()
        if options:
            innerq(model, **options)
        tokens, logits, _ = generate(model, {name: value.cuda() for name, value in inputs.items()}, NEW)
        return tokens.cpu(), logits.cpu()

    eager, base = alone(), alone(preset="base", **mode)
    for lossless, quantized in ranks.results():
        for found in (lossless, quantized):
            assert found["heads"] == [2] * LAYERS and all(found["quantized"])
            # collectives are recorded on request only: a process group waits for their CUDA graphs before it ends
            assert found["cuda_graphs"][-1].startswith("yes" if mode else "no: "), found["cuda_graphs"]
        assert_same_tokens(lossless["tokens"], lossless["logits"], *eager, dtype)
        if dtype == torch.float32:
            assert_same_tokens(quantized["tokens"], quantized["logits"], *base, dtype)
        else:
            assert_close_where_same(quantized["tokens"], quantized["logits"], *base, *eager)


def assert_close_where_same(tokens, logits, base_tokens, base_logits, eager_tokens, eager_logits) -> None:
    """`assert_close_in_rms`, as long as all saw the same tokens."""
    parts = []
    for row in range(tokens.shape[0]):
        same = (tokens[row] == base_tokens[row]) & (tokens[row] == eager_tokens[row])
        seen = slice(0, int(same.int().cumprod(0).sum()) + 1)  # the logits behind the last common token, too
        parts.append([found[row, seen] for found in (logits, base_logits, eager_logits)])
    assert_close_in_rms(*(torch.cat(found) for found in zip(*parts, strict=True)))


def check_map(first: str, second: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    torch._dynamo.reset()
    inputs = prompt(2, 250, (0, 41), device=first)
    model = tiny_llama(layers=LAYERS, dtype=torch.float32)
    expected, logits, _ = generate(model.to(first), inputs, NEW)
    places = {"model.embed_tokens": first, "model.rotary_emb": first, "model.layers.0": first}
    places |= {"model.layers.1": second, "model.norm": second, "lm_head": second}
    # main_device: without it accelerate takes weights on the CPU for offloaded ones
    model = accelerate.dispatch_model(model.cpu(), places, main_device=second, force_hooks=True)
    innerq(model, preset="lossless")
    tokens, ours, cache = generate(model, inputs, NEW)
    assert_same_tokens(tokens.cpu(), ours.cpu(), expected.cpu(), logits.cpu(), torch.float16)
    assert [layer.keys.device for layer in cache.layers] == [torch.device(first), torch.device(second)]
    assert all(isinstance(layer.keys, InnerQTensor) for layer in cache.layers)
    (decode,) = [report for report in compiled_graphs()[-2:] if report.kind == "decode"]
    assert decode.rewritten == LAYERS and decode.recorded == 0
    assert "on cpu" in str(decode.cuda_graphs) or "on 2 devices" in str(decode.cuda_graphs)


def test_layers_on_a_gpu_and_the_cpu():
    check_map("cuda:0", "cpu")


@two_gpus
def test_layers_on_two_gpus():
    check_map("cuda:0", "cuda:1")


@torch.no_grad()
@pytest.mark.parametrize("preset", ["lossless", "base"])
def test_a_cache_that_is_on_the_cpu_between_steps(preset):
    """As transformers' offloading cache moves its layers."""
    torch._dynamo.reset()
    inputs = prompt(2, 250, device="cuda")
    model = innerq(tiny_llama(layers=LAYERS, dtype=torch.float16).cuda(), preset=preset)
    out = [model(**inputs, use_cache=True), model(**inputs, use_cache=True)]
    for _ in range(4):
        for layer in out[1].past_key_values.layers:
            layer.keys, layer.values = layer.keys.cpu(), layer.values.cpu()
            assert layer.keys.device.type == "cpu" and isinstance(layer.keys, InnerQTensor)
            layer.keys, layer.values = layer.keys.cuda(), layer.values.cuda()
        token = out[0].logits[:, -1:].argmax(-1)
        out = [model(token, past_key_values=past.past_key_values, use_cache=True) for past in out]
        torch.testing.assert_close(out[0].logits, out[1].logits, rtol=0, atol=0)
