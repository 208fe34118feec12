"""Decoders with caches of their own: compiled against eager over a prompt, many steps, and a second prompt."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQConfig, InnerQTensor, compiled_graphs, innerq
from tests.helpers.decoders import (
    VOCAB,
    EinsumDecoder,
    GPTFast,
    LatentDecoder,
    LateTransposeGPT,
    LlamaReference,
    MemoryGPT,
    NanoGPT,
    RowGPT,
    TuneGPT,
    run,
)
from tests.helpers.programs import TinyAttention

PROGRAMS = [NanoGPT, LateTransposeGPT, LatentDecoder, LlamaReference, GPTFast, TuneGPT, RowGPT, MemoryGPT]


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_program(program):
    check_program(program)


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(
    "program",
    [pytest.param(p, marks=() if p in (LatentDecoder, GPTFast) else pytest.mark.slow) for p in PROGRAMS],
    ids=lambda p: p.__name__,
)
def test_under_a_default_device(program):
    """Some versions of Dynamo call methods as functions then, such as ``torch.Tensor.split(x, ...)``."""
    with torch.device("cpu"):
        check_program(program)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "program",
    [pytest.param(p, marks=() if p is GPTFast else pytest.mark.slow) for p in PROGRAMS],
    ids=lambda p: p.__name__,
)
def test_compiled_by_inductor(program):
    """The buffers of one that are written in place are what is special to Inductor; the others take long as well."""
    check_program(program)


def check_program(program):
    model = program(batch=2).eval()
    prompts = [torch.randint(0, VOCAB, (2, n)) for n in (150, 40)]
    expected = [run(model, prompt, 40) for prompt in prompts]
    innerq(model, preset="lossless")
    for prompt, logits in zip(prompts, expected, strict=True):
        torch.testing.assert_close(run(model, prompt, 40), logits, atol=2e-4, rtol=1e-4)
    decode = [report for report in compiled_graphs() if report.kind == "decode"]
    assert decode and all(report.rewritten == 2 for report in decode), [str(r) for r in compiled_graphs()]


@pytest.mark.usefixtures("no_inductor")
@pytest.mark.parametrize(
    # caches with tokens in the third dimension are those of transformers, see test_generate_llama.py
    ("program", "tokens_dim"),
    [pytest.param(NanoGPT, 2, marks=pytest.mark.slow), (EinsumDecoder, 1)],
)
def test_base_computes_what_the_method_says(program, tokens_dim):
    """Compared with the eager program over caches that are quantized after the prompt and dequantized to be read."""
    model = program(batch=2).eval()
    tokens = torch.randint(0, VOCAB, (2, 200))
    tokens[:, 150:160] = tokens[:, 150:151]

    @torch.no_grad()
    def logits(after_the_prompt):
        model.reset()
        outputs, position = [model.step(tokens[:, :150], 0)[:, -1]], 150
        after_the_prompt()
        for count in (1, 1, 5, 1, 20, *[1] * 20):
            outputs.append(model.step(tokens[:, position : position + count], position))
            position += count
        return torch.cat([out.flatten() for out in outputs])

    def quantize():
        model.pasts = [
            tuple(
                InnerQTensor.from_dense(x, config, role=role, tokens_dim=tokens_dim)
                for x, role in zip(past, ("key", "value"), strict=True)
            )
            for past in model.pasts
        ]

    config = InnerQConfig.preset("base", key_mode="hybrid")  # which needs no queries
    expected, exact = logits(quantize), logits(lambda: None)
    innerq(model, config)
    found = logits(lambda: None)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    assert (exact - expected).abs().max() > 0.02  # so that the tolerance says something
    assert all(isinstance(x, InnerQTensor) and x.tokens_dim == tokens_dim for past in model.pasts for x in past)


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("program", [LateTransposeGPT, pytest.param(EinsumDecoder, marks=pytest.mark.slow)])
def test_beams_and_crops_of_caches_as_batch_tokens_heads(program):
    """Reordering sequences, going back some tokens and going on from an older cache, between compiled steps."""
    model = program(batch=2).eval()
    prompt, generator = torch.randint(0, VOCAB, (2, 140)), torch.Generator().manual_seed(0)
    beams = [torch.randint(0, 2, (2,), generator=generator) for _ in range(12)]

    @torch.no_grad()
    def logits():
        model.reset()
        outputs, position = [model.step(prompt, 0)[:, -1:]], 140
        for index, order in enumerate(beams):
            outputs.append(model.step(outputs[-1][:, -1:].argmax(-1), position))
            position += 1
            model.pasts = [tuple(x.index_select(0, order) for x in past) for past in model.pasts]
            if index % 4 == 3:
                position -= 3
                model.pasts = [tuple(x[:, :position] for x in past) for past in model.pasts]
            if index % 4 == 1:
                older = model.pasts
                outputs.append(model.step(prompt[:, :7], position))
                model.pasts = older
        return torch.cat([out[:, -1] for out in outputs])

    expected = logits()
    innerq(model, preset="lossless")
    torch.testing.assert_close(logits(), expected, atol=2e-4, rtol=1e-4)
    assert all(isinstance(x, InnerQTensor) and x.tokens_dim == 1 for past in model.pasts for x in past)
    decode = [report for report in compiled_graphs() if report.kind == "decode"]
    assert decode and all(report.rewritten == 2 for report in decode)


@pytest.mark.usefixtures("no_inductor")
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
