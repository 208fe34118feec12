"""Options that switch off passes, the rewrite or the kernels, by which a user finds out which of them is at fault."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from innerq_compile import InnerQConfig, InnerQError, InnerQTensor, compiled_graphs, empty_cache, innerq
from innerq_compile.config import describe
from innerq_compile.passes import PIPELINE
from tests.helpers.models import generate, prompt, tiny_llama
from tests.helpers.programs import BufferAttention, TinyAttention
from tests.helpers.without_inductor import forget_graphs

OPTIONAL = [name for name in PIPELINE.names() if name not in PIPELINE.required]


@pytest.fixture(scope="module", autouse=True)
def cheap(graphs_as_they_are_in_module):
    torch.manual_seed(0)


@torch.no_grad()
def steps(model, count: int = 4, tokens: int = 150):
    """Outputs of a prompt and ``count`` steps, and the last cache."""
    torch.manual_seed(5)
    outputs, cache = [], None
    for n in (tokens, *[1] * count):
        out, cache = model(torch.randn(1, n, 32), cache)
        outputs.append(out[:, -1])
    return torch.cat(outputs), cache


# --- passes ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_inductor")  # what a pass leaves undone may be seen by AOTAutograd only
@pytest.mark.parametrize("name", OPTIONAL)
def test_without_any_one_pass_the_program_stays_right(name):
    """In ``lossless``, so that quantization makes no difference."""
    forget_graphs()
    torch.manual_seed(1)
    model = TinyAttention()
    mask = torch.ones(150, 150).tril().bool()
    compiled = torch.compile(model, backend="innerq", options={"preset": "lossless", "disabled_passes": (name,)})
    torch.manual_seed(5)
    x, token = torch.randn(1, 150, 32), torch.randn(1, 1, 32)
    with torch.no_grad():
        both = []
        for run in (model, compiled):
            first, cache = run(x, None, mask)
            both.append([first, run(token, cache)[0]])
    torch.testing.assert_close(both[1], both[0])
    assert all(name in report.left_out for report in compiled_graphs())
    assert f"without {', '.join(PIPELINE.left_out((name,)))}" in str(compiled_graphs()[0])


def test_a_pass_that_needs_one_that_is_off_does_not_run():
    expected = ("standard_form", "rewrite_decode", "rewrite_buffer", "quantize_prefill", "causal_prefill")
    assert PIPELINE.left_out(("standard_form",)) == expected
    assert PIPELINE.left_out(("fold_key_norm",)) == ("rewrite_decode", "rewrite_buffer", "fold_key_norm")


@pytest.mark.parametrize("name", sorted(PIPELINE.required))
def test_passes_that_cannot_be_switched_off(name):
    with pytest.raises(InnerQError, match=rf"'{name}' cannot be switched off.*allowed are skip_whole_slices"):
        InnerQConfig(disabled_passes=(name,))


def test_wrong_names_of_passes():
    with pytest.raises(InnerQError, match="'rewrite_everything' is not a pass: allowed are skip_whole_slices"):
        innerq(TinyAttention(), disabled_passes=["rewrite_everything"])
    with pytest.raises(InnerQError, match="disabled_passes=3 is not allowed"):
        InnerQConfig(disabled_passes=3)
    with pytest.raises(InnerQError, match="rewrite='no' is not allowed"):
        InnerQConfig(rewrite="no")
    assert InnerQConfig(disabled_passes="hoist_lengths") == InnerQConfig(disabled_passes=["hoist_lengths"])


def test_a_config_in_few_words():
    assert describe(InnerQConfig()) == "base"
    assert describe(InnerQConfig.preset("small", recent=7)) == "small, recent=7"
    assert describe(InnerQConfig(rewrite=False)) == "base, rewrite=False"


# --- the rewrite ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("form", ["sdpa", "eager"])
def test_without_the_rewrite_the_cache_is_the_same_and_attention_the_programs_own(form):
    """Over a block boundary: in both ways a full window is quantized before the attention reads it."""
    torch.manual_seed(2)
    model = TinyAttention(form=form)
    results = []
    for rewrite in (True, False):
        forget_graphs()
        compiled = torch.compile(model, backend="innerq", options={"preset": "tiny", "rewrite": rewrite})
        results.append(steps(compiled, count=40))
    (out, cache), (dense_out, dense_cache) = results
    torch.testing.assert_close(dense_out, out, atol=2e-4, rtol=2e-4)
    for side, dense_side in zip(cache, dense_cache, strict=True):
        assert isinstance(dense_side, InnerQTensor)
        torch.testing.assert_close(dense_side.dequantize(), side.dequantize())
    decode = compiled_graphs()[-1]
    assert (decode.kind, decode.rewritten) == ("decode", 1)
    assert "1/1 attentions served dequantized, decode, tiny, rewrite=False" in str(decode)
    exact = steps(model, count=40)[0]
    assert (out - exact).abs().max() > 10 * (out - dense_out).abs().max()  # the quantizer is what differs


@pytest.mark.slow
def test_without_the_rewrite_in_a_model_of_transformers_with_padding():
    model, inputs = tiny_llama(layers=2), prompt(2, 140, (0, 9))
    results = []
    for rewrite in (True, False):
        torch._dynamo.reset()
        results.append(generate(innerq(model, preset="base", rewrite=rewrite), inputs, 6))
        model._compiled_call_impl = None
    (tokens, logits, _), (dense_tokens, dense_logits, cache) = results
    assert torch.equal(tokens, dense_tokens)
    torch.testing.assert_close(dense_logits, logits, atol=2e-3, rtol=2e-3)
    assert all(isinstance(layer.keys, InnerQTensor) for layer in cache.layers)


@pytest.mark.usefixtures("no_inductor")
@pytest.mark.parametrize("preallocated", [False, True])
def test_without_the_rewrite_over_buffers(preallocated):
    torch.manual_seed(3)
    model = BufferAttention()
    results = []
    for options in ({"preset": "base"}, {"preset": "base", "rewrite": False}):
        forget_graphs()
        compiled = torch.compile(model, backend="innerq", options=options)
        if preallocated:
            buffers = [empty_cache(1, 1, 256, 16, role=role) for role in ("key", "value")]
        else:
            buffers = [torch.zeros(1, 1, 256, 16) for _ in range(2)]
        torch.manual_seed(5)
        outs, position = [], 0
        with torch.no_grad():
            for n in (150, 1, 1, 1):
                at = torch.arange(position, position + n)
                mask = torch.arange(256)[None, :] <= at[:, None]
                outs.append(compiled(torch.randn(1, n, 32), at, *buffers, mask)[:, :, -1])
                position += n
        results.append(torch.stack(outs))
        assert compiled_graphs()[-1].rewritten == 1, str(compiled_graphs()[-1])
    torch.testing.assert_close(results[1], results[0], atol=2e-4, rtol=2e-4)


# --- the kernels ----------------------------------------------------------------------------------------------------


def test_kernels_can_be_switched_off_and_wrong_choices_are_named():
    program = "import torch, innerq_compile.kernels.dispatch as d; print(d.backend_for(torch.device('cpu')))"

    def run(choice):
        environment = {"INNERQ_KERNELS": choice, "PATH": "/usr/bin:/bin"}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)

    assert "kernels.reference.backend" in run("reference").stdout
    assert "kernels.cpu" in run("all").stdout
    assert "INNERQ_KERNELS='fast' is not allowed: it has to be 'all' or 'reference'" in run("fast").stderr
