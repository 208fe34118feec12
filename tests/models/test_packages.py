"""Packages of others, unmodified, where they are installed. ``tests/helpers/decoders.py`` has their spellings."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.generation import assert_quantized, run
from tests.helpers.models import prompt, tiny_llama

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")


def needs(package: str) -> pytest.MarkDecorator:
    """Skips a test where the package is not installed at all; one that lacks what it imports is an error."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


def all_steps_are_rewritten() -> bool:
    steps = [report for report in compiled_graphs() if report.kind == "decode"]
    return bool(steps) and all(report.rewritten == report.attentions == 2 for report in steps)


def test_they_are_installed_with_the_tests():
    """Where one is missing its tests are skipped, which nobody would see if `make test` did not install it."""
    root, own = Path(__file__).parents[2], Path(__file__).read_text(encoding="utf-8")
    installed = (root / "pyproject.toml").read_text(encoding="utf-8").partition("\ntest = [")[2].partition("\n")[0]
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    installed += "\n".join(line for line in makefile.splitlines() if "$(PIP)" in line)
    names = set(re.findall(r'^@needs\("(\w+)', own, re.MULTILINE))
    assert names == {"litgpt", "x_transformers", "peft"}
    assert [name for name in names if not re.search(rf"\b{name}\b", installed.replace("-", "_"))] == []


@needs("litgpt")
def test_litgpt():
    from litgpt import model as litgpt
    from litgpt.generate.base import generate

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        sizes = {"n_layer": 2, "n_head": 4, "n_query_groups": 2, "n_embd": 64, "head_size": 16, "intermediate_size": 64}
        kinds = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "rotary_percentage": 1.0, "bias": False}
        made = litgpt.GPT(litgpt.Config(block_size=256, vocab_size=61, padded_vocab_size=64, **sizes, **kinds)).eval()
        made.set_kv_cache(batch_size=1)
        return made

    prompt = torch.randint(0, 61, (150,))
    expected = generate(model(), prompt, 180, temperature=0.0)
    assert torch.equal(generate(innerq(model(), preset="lossless"), prompt, 180, temperature=0.0), expected)
    assert all_steps_are_rewritten()


@needs("x_transformers")
def test_x_transformers():
    import x_transformers as package

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        layers = package.Decoder(dim=64, depth=2, heads=4, attn_dim_head=16, attn_flash=True)
        return package.TransformerWrapper(num_tokens=61, max_seq_len=256, attn_layers=layers).eval()

    @torch.no_grad()
    def logits(model) -> torch.Tensor:
        cache, found = None, []
        for count in range(150, 160):
            out, cache = model(tokens[:, :count], return_intermediates=True, cache=cache)
            found.append(out[:, -1])
        caches.append(cache)
        return torch.stack(found, 1)

    tokens, caches = torch.randint(0, 61, (1, 160)), []
    expected = logits(model())
    torch.testing.assert_close(logits(innerq(model(), preset="lossless")), expected, atol=2e-4, rtol=1e-4)
    assert all(isinstance(side, InnerQTensor) for layer in caches[-1].attn_intermediates for side in layer.cached_kv)
    assert all_steps_are_rewritten()


@needs("peft")
def test_peft():
    """Adapters that are switched, switched off, merged and added later are those that a compiled model has."""
    import peft

    def adapter():
        kind = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
        return peft.LoraConfig(r=4, **kind)

    def story(compile_it) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = compile_it(peft.get_peft_model(tiny_llama(head_dim=16), adapter()).eval())
        found = []

        def note(called) -> None:
            results = run(called, inputs, 4)
            found.append(results.sequences)
            caches.append(results.past_key_values)

        note(model)
        torch.manual_seed(1)
        model.add_adapter("late", adapter())
        note(model)
        model.set_adapter("late")
        note(model)
        with model.disable_adapter():
            note(model)
        model.merge_adapter()
        note(model)
        model.unmerge_adapter()
        with torch.no_grad():
            caches.append(model(**inputs).past_key_values)
        note(model.merge_and_unload())
        return found

    inputs, caches = prompt(1, 140), []
    expected = story(lambda model: model)
    caches.clear()
    assert all(map(torch.equal, story(lambda model: innerq(model, preset="lossless")), expected))
    for cache in caches:
        assert_quantized(cache)


@needs("peft")
@pytest.mark.parametrize("kind", ["prompt", "factors"])
def test_peft_without_weights_of_its_own_in_layers(kind):
    """Tokens in front of the prompt, and factors of keys and values."""
    import peft

    def adapted() -> torch.nn.Module:
        torch.manual_seed(0)
        if kind == "prompt":
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
        else:
            config = peft.IA3Config(
                task_type="CAUSAL_LM",
                target_modules=["k_proj", "v_proj"],
                feedforward_modules=[],
                init_ia3_weights=False,
            )
        return peft.get_peft_model(tiny_llama(head_dim=16), config).eval()

    inputs = prompt(2, 140, (0, 9))
    found = run(innerq(adapted(), preset="lossless"), inputs, 6)
    assert torch.equal(found.sequences, run(adapted(), inputs, 6).sequences)
    assert_quantized(found.past_key_values)


@needs("peft")
def test_peft_prefix():
    """Keys and values that are learned stand in a dense cache before the prompt, and are quantized with it."""
    import peft

    @torch.no_grad()
    def logits(compile_it) -> torch.Tensor:
        torch.manual_seed(0)
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
        model = compile_it(peft.get_peft_model(tiny_llama(head_dim=16), config).eval())
        out = model(**inputs)
        cache, found = out.past_key_values, [out.logits[:, -1:]]
        caches.append(cache)
        for token in range(7, 12):
            step = {"input_ids": torch.full((2, 1), token), "past_key_values": cache}
            found.append(model.get_base_model()(**step).logits)
        return torch.cat(found, 1)

    inputs, caches = prompt(2, 140), []
    expected = logits(lambda model: model)
    torch.testing.assert_close(logits(lambda model: innerq(model, preset="lossless")), expected, atol=2e-5, rtol=1e-4)
    assert caches[-1].get_seq_length() == 165
    assert_quantized(caches[-1])
