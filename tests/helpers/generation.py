"""What tests ask of ``generate``, and what they hold a compiled model to."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import CompileConfig, DynamicCache, LlamaForCausalLM

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.models import tiny_llama

Inputs = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """What generate() is asked for."""

    name: str
    options: dict[str, Any]
    batch: int = 1
    tokens: int = 140
    padding: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name


#: All that `generate` does with a cache of its own.
CASES = [
    Case("greedy", {}),
    Case("left-padded", {}, batch=3, padding=(0, 60, 7)),
    Case("sampling", {"do_sample": True, "temperature": 1.3, "top_k": 20}, batch=2),
    Case("return-sequences", {"do_sample": True, "num_return_sequences": 3}),
    Case("beams", {"num_beams": 3}),
    Case("beams-early-stopping", {"num_beams": 3, "early_stopping": True, "eos_token_id": 7}, batch=2, padding=(0, 9)),
    Case("beams-sampling", {"num_beams": 3, "do_sample": True, "num_return_sequences": 2}),
    Case("prompt-lookup", {"prompt_lookup_num_tokens": 4}),
    Case("chunked-prefill", {"prefill_chunk_size": 40}),
    Case("chunked-prefill-padded", {"prefill_chunk_size": 35}, batch=2, padding=(0, 50)),
    Case("short-prompt", {}, tokens=3),
]


def run(model: LlamaForCausalLM, inputs: Inputs, new: int = 24, **options: Any):
    """generate() of ``new`` tokens, from the same random state each time."""
    torch.manual_seed(3)
    options = {"do_sample": False, "eos_token_id": None, **options}
    options |= {"max_new_tokens": new} if options["eos_token_id"] else {"max_new_tokens": new, "min_new_tokens": new}
    return model.generate(**inputs, pad_token_id=0, return_dict_in_generate=True, **options)


def tokens_of(*args: Any, **options: Any) -> torch.Tensor:
    """The tokens of `run`, those of the prompt among them."""
    return run(*args, **options).sequences


def models(preset: str = "lossless", *, head_dim: int = 16, **shape: Any) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The same random Llama twice: as it is, and compiled."""
    shape["head_dim"] = head_dim
    return tiny_llama(**shape), innerq(tiny_llama(**shape), preset=preset)


def assert_all_rewritten(kind: str = "decode") -> None:
    """Every graph of that kind, of which there is one at least, has all its attentions rewritten."""
    found = [report for report in compiled_graphs() if report.kind == kind]
    assert found, [str(report) for report in compiled_graphs()]
    assert all(report.rewritten == report.attentions > 0 for report in found), [str(report) for report in found]


def assert_quantized(cache: DynamicCache) -> None:
    """All layers hold quantized keys and values."""
    for layer in cache.layers:
        assert isinstance(layer.keys, InnerQTensor) and isinstance(layer.values, InnerQTensor)


def compile_config(**options: Any) -> CompileConfig:
    """How transformers names a backend. By itself it compiles on accelerators alone."""
    config = CompileConfig(backend="innerq", mode=None, options=options or {"preset": "lossless"})
    config._compile_all_devices = True
    return config


@torch.no_grad()
def feed(model: LlamaForCausalLM, ids: torch.Tensor, cache: Any, sizes: list[int]) -> torch.Tensor:
    """Logits of all of ``ids [B, S]``, which are fed in pieces of ``sizes``, each a tensor of its own."""
    pieces = [model(piece.clone(), past_key_values=cache, use_cache=True).logits for piece in ids.split(sizes, dim=1)]
    return torch.cat(pieces, 1)


def assert_same_logits(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32 operations in another order."""
    torch.testing.assert_close(logits, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)
