"""A service's day: once each form of call has been compiled, no length, batch or padding compiles anything.

A form is a prompt of one sequence or of several, with or without left padding: transformers leaves the mask out where
nothing is padded, and Dynamo takes a size of 1 for a constant. Each form has a graph for prompts and one for steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from innerq_compile import compiled_graphs, empty_cache, innerq
from tests.helpers.decoders import VOCAB, GPTFast, LateTransposeGPT, LlamaReference, NanoGPT
from tests.helpers.families import Family, families
from tests.helpers.generation import compile_config, run
from tests.helpers.graph_counts import Graphs
from tests.helpers.models import prompt

LLAMA = Family("LlamaForCausalLM")
#: Those with masks, positions, windows or caches of their own.
KINDS = (
    *("BloomForCausalLM", "CohereForCausalLM", "CpmAntForCausalLM", "FalconForCausalLM", "FalconForCausalLM, ALiBi"),
    *("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
    *("GemmaForCausalLM", "Glm4ForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM", "GraniteSWAForCausalLM"),
    *("Inkling2ForCausalLM", "MiniCPM3ForCausalLM", "MistralForCausalLM, window of 4096", "MixtralForCausalLM"),
    *("MptForCausalLM", "OPTForCausalLM", "Olmo2ForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM", "Qwen2ForCausalLM"),
    *("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "SmolLM3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM"),
    "XGLMForCausalLM",
)
STEPS = 3


@innerq(preset="lossless")
class Decorated(LlamaForCausalLM):
    pass


#: Serves a prompt of ``(batch, tokens, padding)`` and some steps.
Serve = Callable[[int, int, tuple[int, ...]], Any]


@pytest.fixture
def graphs(graphs_as_they_are) -> Graphs:
    return Graphs()


def model_of(family: Family, **options: Any) -> Any:
    return innerq(family.build(family.attn[0]), preset="lossless", **options)


def generate(model: Any, **options: Any) -> Serve:
    return lambda batch, tokens, padding: run(model, prompt(batch, tokens, padding), STEPS, **options)


def requests(most: int, count: int, shortest: int = 2) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Requests in which each length, batch and padding comes as it may: ``(batch, tokens, padding)``."""
    draw = random.Random(5)
    for _ in range(count):
        batch, tokens = draw.choice((1, 1, 2, 3, 4, 8)), draw.randint(shortest, most)
        padded = batch > 1 and draw.random() < 0.4
        yield batch, tokens, (0, *(draw.randrange(tokens) for _ in range(batch - 1))) if padded else ()


def day(graphs: Graphs, serve: Serve, most: int, count: int, shortest: int = 2) -> None:
    for batch, tokens, padding in ((1, 23, ()), (3, 37, ()), (2, 29, (0, 9))):
        serve(batch, tokens, padding)
        new = graphs.new()
        # transformers 5.17 gives several sequences a mask in any case, so that those with padding need no other graphs
        assert new == ["prefill", "decode"] or (
            padding and not new and Version(transformers.__version__) < Version("5.24")
        )
    for batch, tokens, padding in requests(most, count, shortest):
        serve(batch, tokens, padding)
        assert graphs.new() == [], f"{batch} prompts of {tokens} tokens, padding {padding}"


def test_day(graphs):
    day(graphs, generate(model_of(LLAMA)), 200, 15)


@pytest.mark.slow
def test_long_day(graphs):
    day(graphs, generate(model_of(LLAMA)), 3000, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_day_of_family(graphs, name):
    """Windows are of 16 tokens: transformers has a branch of its own for prompts that do not fill them."""
    found = {family.name: family for family in families()}
    if name not in found:
        pytest.skip("this transformers has no such family")
    model = model_of(found[name])
    windows = {"sliding_window", "sliding_window_size"} & vars(model.config).keys()
    day(graphs, generate(model), 200, 20, shortest=17 if windows else 2)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("spelling", ["torch.compile", "compile_config", "decorated class"])
def test_spellings(graphs, spelling):
    """Programs that are compiled in other ways. With ``compile_config`` transformers compiles steps alone."""
    model: Any
    family, options = LLAMA, {}
    if spelling == "decorated class":
        model = Decorated(family.build("sdpa").config).eval()
    elif spelling == "torch.compile":
        model = torch.compile(family.build("sdpa"), backend="innerq", options={"preset": "lossless"})
    else:
        model, options = family.build("sdpa"), {"compile_config": compile_config()}

    def serve(batch: int, tokens: int) -> None:
        size = {"past_key_values": StaticCache(model.config, max_cache_len=tokens + 40)} if options else {}
        run(model, prompt(batch, tokens), STEPS, **options, **size)

    expected = ["decode"] if options else ["prefill", "decode"]
    for batch, tokens, new in ((1, 23, expected), (1, 90, []), (2, 30, expected), (5, 60, []), (1, 44, [])):
        serve(batch, tokens)
        assert graphs.new() == new, (batch, tokens)


@torch.no_grad()
def test_loop_without_masks(graphs):
    """A loop of one's own, with pieces of several tokens."""
    model = model_of(LLAMA)
    for batch in (1, 2):
        for number, pieces in enumerate(([40, 1, 1, 7, 1], [90, 1, 30, 1], [60, 4, 5, 6])):
            cache = DynamicCache()
            for tokens in pieces:
                model(torch.randint(0, 61, (batch, tokens)), past_key_values=cache, use_cache=True)
            assert graphs.new() == ([] if number else ["prefill", "decode", "decode"])


@pytest.mark.parametrize("decoder", [NanoGPT, LateTransposeGPT, GPTFast, LlamaReference])
@torch.no_grad()
def test_hand_written(graphs, decoder):
    """The last two write to buffers of a fixed batch."""
    model = innerq(decoder(batch=2).eval(), preset="lossless")
    for number, (batch, tokens) in enumerate(((2, 20), (3, 50), (4, 9), (2, 33))):
        if decoder in (GPTFast, LlamaReference):
            batch = 2
        model.reset()
        model.step(torch.randint(0, VOCAB, (batch, tokens)), 0)
        for step in range(STEPS):
            model.step(torch.randint(0, VOCAB, (batch, 1)), tokens + step)
        assert len(graphs.new()) == (0 if number else 2)
    reports = [report for report in compiled_graphs() if report.kind == "decode"]
    assert [report.rewritten for report in reports] == [2]


@torch.no_grad()
def test_decode_function(graphs):
    """A step that is a function of its own, with the position as a number, and buffers of this package."""

    @innerq(preset="lossless")
    def step(query, key, value, keys, values, position: int):
        keys[:, :, position : position + 1] = key
        values[:, :, position : position + 1] = value
        mask = torch.arange(keys.shape[2]) <= position
        return torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask[None, None, None])

    for number, (batch, room) in enumerate(((2, 200), (3, 300), (8, 250))):
        keys, values = (empty_cache(batch, 2, room, 16, role=role, config="lossless") for role in ("key", "value"))
        for buffer in (keys, values):
            buffer[:, :, :40] = torch.randn(batch, 2, 40, 16)
        for position in range(40, 44):
            step(*(torch.randn(batch, 2, 1, 16) for _ in range(3)), keys, values, position)
        assert graphs.new() == ([] if number else ["decode"])


def test_one_token(graphs):
    """A prompt of one token, and the step behind it, whose cache holds one token, have graphs of their own."""
    serve = generate(model_of(LLAMA))
    serve(1, 23, ())
    assert graphs.new() == ["prefill", "decode"]
    serve(1, 1, ())
    assert graphs.new() == ["prefill", "decode"]
    for tokens in (50, 1, 7):
        serve(1, tokens, ())
        assert graphs.new() == []
