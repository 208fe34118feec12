"""transformers' generate() with its default cache, on every case that the README names."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from innerq_compile import InnerQConfig, InnerQTensor, clear_reports, compiled_graphs, innerq
from tests.helpers.models import assert_close_in_rms, assert_same_tokens, generate, prompt, reference_logits, tiny_llama

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclasses.dataclass(frozen=True)
class Case:
    preset: str
    attn: str
    dtype: torch.dtype
    batch: int
    prompt: int
    new: int
    padding: tuple[int, ...] = ()
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        pad = "-pad" + "".join(f"_{p}" for p in self.padding) if self.padding else ""
        heads = f"H{self.heads}_{self.kv_heads}-D{self.head_dim}"
        return f"{self.preset}-{self.attn}-{dtype}-B{self.batch}-P{self.prompt}-N{self.new}{pad}-{heads}"


CASES = [
    # windows: prompts of one token, shorter than the windows; growth past the first capacity
    Case("lossless", "sdpa", F32, 1, 1, 8),
    Case("lossless", "eager", F32, 2, 40, 130, padding=(7, 0)),
    Case("base", "sdpa", F32, 2, 230, 70, padding=(0, 41)),
    Case("small", "sdpa", BF16, 2, 300, 20, head_dim=80, kv_heads=4),
]
MORE_CASES = [
    Case("tiny", "sdpa", F32, 1, 300, 35),
    Case("lossless", "sdpa", F32, 2, 159, 6, padding=(0, 30), kv_heads=4),
    Case("lossless", "sdpa", F32, 1, 150, 300, head_dim=16),
    Case("lossless", "sdpa", BF16, 3, 200, 40, padding=(0, 60, 5), head_dim=80),
    Case("lossless", "eager", F16, 1, 170, 30, head_dim=128),
    Case("lossless", "sdpa", F16, 2, 33, 10, padding=(1, 0), head_dim=256, kv_heads=1),
    Case("base", "eager", F32, 1, 20, 160, head_dim=96),
    Case("int4", "eager", F16, 2, 240, 20, padding=(3, 0), head_dim=256),
]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)], ids=str
)
def test_generate(case: Case):
    check_generate(case, "cpu")


def check_generate(case: Case, device: str) -> None:
    """Compile, generate, compare; shared with the tests on a GPU."""
    torch._dynamo.reset()
    clear_reports()
    shape = {"heads": case.heads, "kv_heads": case.kv_heads, "head_dim": case.head_dim}
    model = tiny_llama(attn=case.attn, dtype=case.dtype, **shape).to(device)
    inputs = prompt(case.batch, case.prompt, case.padding, device=device)
    config = InnerQConfig.preset(case.preset)
    if case.preset == "lossless":
        expected_tokens, expected, _ = generate(model, inputs, case.new)
    innerq(model, config)
    tokens, logits, cache = generate(model, inputs, case.new)
    model._compiled_call_impl = None

    # a past of one token is a graph of its own: Dynamo takes a size of 1 for a constant
    decode_graphs = 2 if case.prompt == 1 else 1
    expected_graphs = [("prefill", 1, 1)] + [("decode", 1, 1)] * decode_graphs
    assert [(r.kind, r.rewritten, r.attentions) for r in compiled_graphs()] == expected_graphs
    keys, values = cache.layers[0].keys, cache.layers[0].values
    assert isinstance(keys, InnerQTensor) and isinstance(values, InnerQTensor)
    assert keys.shape == (case.batch, case.kv_heads, case.prompt + case.new - 1, case.head_dim)
    if case.preset == "lossless":
        assert_same_tokens(tokens, logits, expected_tokens, expected, case.dtype)
    else:
        assert keys.format.norm == "channel"
        expected = reference_logits(model, inputs, tokens, config, keys.format.norm)
        exact = None if case.dtype == F32 else reference_logits(model, inputs, tokens, InnerQConfig.preset("lossless"))
        assert_close_in_rms(logits, expected, exact)
