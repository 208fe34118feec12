"""Decoders with caches of their own: compiled against eager over a prompt, many steps, and a second prompt."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import clear_reports, compiled_graphs, innerq

from ..programs import TinyAttention
from .programs import VOCAB, GPTFast, LlamaReference, NanoGPT

PROGRAMS = [NanoGPT, LlamaReference, GPTFast]


@torch.no_grad()
def run(model, prompt, steps: int) -> torch.Tensor:
    """Greedy decoding with the model's own loop: logits ``[B, steps, vocab]``."""
    model.reset()
    tokens, position, logits = prompt, 0, []
    for _ in range(steps):
        out = model.step(tokens, position)[:, -1]
        logits.append(out)
        position += tokens.shape[1]
        tokens = out.argmax(-1, keepdim=True)
    return torch.stack(logits, 1)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_program(program):
    torch._dynamo.reset()
    clear_reports()
    model = program(batch=2).eval()
    prompts = [torch.randint(0, VOCAB, (2, n)) for n in (150, 40)]
    expected = [run(model, prompt, 40) for prompt in prompts]
    innerq(model, preset="lossless")
    for prompt, logits in zip(prompts, expected, strict=True):
        torch.testing.assert_close(run(model, prompt, 40), logits, atol=2e-4, rtol=1e-4)
    decode = [report for report in compiled_graphs() if report.kind == "decode"]
    assert decode and all(report.rewritten == 2 for report in decode), [str(r) for r in compiled_graphs()]


@pytest.mark.usefixtures("cheap_inductor")
def test_a_step_that_does_not_return_its_cache_leaves_it_as_it_was():
    model = TinyAttention()
    prompt, steps = torch.randn(1, 150, 32), [torch.randn(1, 1, 32) for _ in range(40)]

    @torch.no_grad()
    def run(whole, peek):
        _, cache = whole(prompt)
        outputs = []
        for x in steps:
            outputs.append(peek(x, cache))
            out, cache = whole(x, cache)
            outputs.append(out)
        return torch.cat(outputs)

    def peek(x, cache):
        return model(x, cache)[0]

    expected = run(model, peek)
    compiled = [torch.compile(f, backend="innerq", options={"preset": "lossless"}) for f in (model, peek)]
    torch.testing.assert_close(run(*compiled), expected)
