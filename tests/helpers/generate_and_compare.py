"""Compile a tiny Llama, generate, and compare with the uncompiled one: shared by the tests on a CPU and on a GPU."""

from __future__ import annotations

import dataclasses

import torch

from innerq_compile import InnerQConfig, InnerQTensor, compiled_graphs, innerq
from tests.helpers.models import assert_close_in_rms, assert_same_tokens, generate, prompt, reference_logits, tiny_llama
from tests.helpers.without_inductor import forget_graphs

F32 = torch.float32


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a prompt and how many tokens are generated."""

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


def check_generate(case: Case, device: str) -> None:
    """Compile, generate, compare."""
    forget_graphs()
    shape = {"heads": case.heads, "kv_heads": case.kv_heads, "head_dim": case.head_dim}
    model = tiny_llama(attn=case.attn, dtype=case.dtype, **shape).to(device)
    inputs = prompt(case.batch, case.prompt, case.padding, device=device)
    config = InnerQConfig.preset(case.preset)
    # another batch, and other lengths: the graphs below serve both
    others = prompt(case.batch + 1, case.prompt // 2, (3,), device=device) if case.padding and device == "cpu" else None
    if case.preset == "lossless":
        expected_tokens, expected, _ = generate(model, inputs, case.new)
        expected_others = None if others is None else generate(model, others, 8)
    innerq(model, config)
    tokens, logits, cache = generate(model, inputs, case.new)
    if others is not None:
        found = generate(model, others, 8)
        if case.preset == "lossless":
            assert_same_tokens(*found[:2], *expected_others[:2], case.dtype)
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
