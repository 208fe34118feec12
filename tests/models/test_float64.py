"""Programs in float64: their caches are quantized like all others, and nothing is rounded to float32 on the way.

Differences of 1e-10 are a thousandth of what one rounding to float32 anywhere would make of numbers of about unit size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from innerq_compile import InnerQConfig, InnerQTensor, compiled_graphs, empty_cache, innerq
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.kernels import cpu
from tests.helpers.decoders import (
    HEAD_DIM,
    HEADS,
    VOCAB,
    WIDTH,
    GPTFast,
    LatentDecoder,
    LateTransposeGPT,
    MemoryGPT,
    NanoAttention,
    NanoGPT,
    RowGPT,
    run,
)
from tests.helpers.families import families
from tests.helpers.models import prompt, reference_logits, tiny_llama, windowed_model

F64 = torch.float64
#: Tokens of the sinks and the recent window of the presets.
EXACT = 32 + 96
PROGRAMS = [NanoGPT, LateTransposeGPT, LatentDecoder, GPTFast, RowGPT, MemoryGPT]


def assert_exact(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype == F64
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def assert_served_by_the_reference() -> None:
    """Every attention of a step is rewritten, and plain torch computes it, for this reason."""
    steps = [report for report in compiled_graphs() if report.kind == "decode"]
    assert steps and all(report.rewritten == report.attentions > 0 for report in steps)
    kernels = {str(layer.kernel) for report in steps for layer in report.layers}
    assert kernels == {"reference: kernels compute in float32, so plain torch serves float64"}


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an argument of a kernel, which may be a cache, a call, or a list of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


@pytest.fixture(autouse=True)
def kernels_of_the_cpu(monkeypatch):
    """There are C++ kernels, and none of them is called with float64."""

    def watched(kernel: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = tensors_in([*args, *kwargs.values()])
            assert all(tensor.dtype != F64 for tensor in given), "a C++ kernel computes in float32"
            return kernel(*args, **kwargs)

        return call

    monkeypatch.setattr(cpu, "available", lambda: True)
    for name in ("append_", "prefill", "decode_attention", "decode_attention_lse"):
        monkeypatch.setattr(cpu, name, watched(getattr(cpu, name)))


# --- programs without a step in float32 -------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(("preset", "tokens"), [("lossless", 150), ("base", EXACT - 40)])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_what_is_not_quantized_is_exact(program, preset, tokens):
    """All tokens in ``lossless``; with normalized and centred keys, those of the sinks and the recent window."""
    model, ids = program(batch=2).eval().double(), torch.randint(0, VOCAB, (2, tokens))
    expected = run(model, ids, 40)
    innerq(model, preset=preset)
    assert_exact(run(model, ids, 40), expected)
    assert_served_by_the_reference()


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_by_inductor():
    model, ids = NanoGPT(batch=2).eval().double(), torch.randint(0, VOCAB, (2, 150))
    expected = run(model, ids, 8)
    innerq(model, preset="lossless")
    assert_exact(run(model, ids, 8), expected)
    assert_served_by_the_reference()


class OwnAttention(NanoAttention):
    """An attention with another way to make keys and queries, or weights."""

    def rotated(self, q, k, first):
        return q, k

    def weights(self, scores):
        return scores.softmax(-1)

    def shown(self, rows, columns):
        return columns <= rows

    def kept(self, x):
        return x

    def forward(self, x, past):
        B, T, C = x.size()
        q, k, v = (t.view(B, T, HEADS, C // HEADS).transpose(1, 2) for t in self.c_attn(x).split(WIDTH, dim=2))
        # where the first token stands among those that are kept
        q, k = self.rotated(q, k, 0 if past is None else past[0].size(2))
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        S = k.size(2)
        mask = self.shown(torch.arange(S - T, S)[:, None], torch.arange(S))
        scores = (q @ k.mT * (C // HEADS) ** -0.5).masked_fill(~mask, float("-inf"))
        y = self.weights(scores) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C)), (self.kept(k), self.kept(v))


class Windowed(OwnAttention):
    WINDOW = 40

    def shown(self, rows, columns):
        return (columns <= rows) & (columns > rows - self.WINDOW)

    def kept(self, x):
        return x[:, :, -self.WINDOW + 1 :]


class Sinks(OwnAttention):
    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.sinks = nn.Parameter(torch.randn(HEADS))

    def weights(self, scores):
        sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]


class Rotary(OwnAttention):
    """``rotate_half``, in the dtype of ``angles``."""

    def angles(self, x, first):
        frequencies = 10_000.0 ** -(torch.arange(HEAD_DIM // 2, dtype=x.dtype) / (HEAD_DIM // 2))
        return torch.arange(first, first + x.size(2))[:, None] * frequencies

    def turned(self, x, first):
        angles = torch.cat((self.angles(x, first),) * 2, -1)
        low, high = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-high, low), -1) * angles.sin()

    def rotated(self, q, k, first):
        return self.turned(q, first), self.turned(k, first)


class ComplexRotary(Rotary):
    def turned(self, x, first):
        angles = self.angles(x, first)
        numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class Float32Rotary(Rotary):
    """The program itself rounds here: what it rounds has to stay the same number."""

    def turned(self, x, first):
        return super().turned(x.float(), first).to(x.dtype)


def decoder(attention: type[nn.Module]) -> Any:
    return type(f"{attention.__name__}GPT", (NanoGPT,), {"attention": attention})(batch=2).eval().double()


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(("preset", "tokens"), [("lossless", 150), ("base", EXACT - 40)])
@pytest.mark.parametrize("attention", [Windowed, Sinks])
def test_windows_and_sink_logits(attention, preset, tokens):
    """A short window is held in a ring; sink logits meet scores without the share of the keys' mean."""
    model, ids = decoder(attention), torch.randint(0, VOCAB, (2, tokens))
    expected = run(model, ids, 40)
    innerq(model, preset=preset)
    assert_exact(run(model, ids, 40), expected)
    assert_served_by_the_reference()
    mode = {"Windowed": "rolling", "Sinks": {"lossless": "none", "base": "steered"}[preset]}[attention.__name__]
    assert {past[0].format.mode for past in model.pasts} == {mode}


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(
    ("attention", "place"), [(Rotary, "projection"), (ComplexRotary, "projection"), (Float32Rotary, "after rotary")]
)
def test_keys_are_normalized_in_float64(attention, place):
    """At the projections too, but not through anything that the program rounds to float32 behind them."""
    model, ids = decoder(attention), torch.randint(0, VOCAB, (2, EXACT - 40))
    expected = run(model, ids, 40)
    innerq(model, preset="base", key_norm="pair")
    assert_exact(run(model, ids, 40), expected)
    steps = [report for report in compiled_graphs() if report.kind == "decode"]
    places = {layer.key_norm.query for report in steps for layer in report.layers if layer.key_norm is not None}
    assert places and all(at.startswith(place) for at in places), places


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("attention", [Rotary, Float32Rotary])
def test_base_computes_what_the_method_says(attention):
    """Compared with the eager program over caches that are quantized after the prompt and dequantized to be read."""
    model, ids = decoder(attention), torch.randint(0, VOCAB, (2, 240))
    config = InnerQConfig.preset("base", key_mode="hybrid")  # which needs no queries

    @torch.no_grad()
    def logits(after_the_prompt) -> torch.Tensor:
        model.reset()
        found, position = [model.step(ids[:, :200], 0)[:, -1]], 200
        after_the_prompt()
        for count in (1, 1, 7, *[1] * 20):
            found.append(model.step(ids[:, position : position + count], position)[:, -1])
            position += count
        return torch.stack(found, 1)

    def quantize() -> None:
        model.pasts = [
            tuple(InnerQTensor.from_dense(x, config, role=role) for x, role in zip(past, ("key", "value"), strict=True))
            for past in model.pasts
        ]

    expected, exact = logits(quantize), logits(lambda: None)
    innerq(model, config)
    assert_exact(logits(lambda: None), expected)
    assert (exact - expected).abs().max() > 0.01  # it is quantized
    assert_served_by_the_reference()


# --- preallocated caches ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(("preset", "tokens"), [("lossless", 150), ("base", EXACT - 40)])
def test_quantized_buffers_where_float64_is_the_default(preset, tokens, monkeypatch):
    """Key statistics of a buffer stay float32, as those of all caches."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        model, ids = GPTFast(batch=2).eval(), torch.randint(0, VOCAB, (2, tokens))
        expected = run(model, ids, 20)
        for layer in model.layers:
            for name, role in (("k_cache", "key"), ("v_cache", "value")):
                shape = getattr(layer.kv_cache, name).shape
                setattr(layer.kv_cache, name, empty_cache(*shape, role=role, config=preset, dtype=F64))
        innerq(model, preset=preset)
        assert_exact(run(model, ids, 20), expected)
    finally:
        torch.set_default_dtype(before)
    inner = model.layers[0].kv_cache.k_cache.inner_tensors()
    assert inner["window"].dtype == F64
    assert {inner[name].dtype for name in ("mean", "norm") if name in inner} <= {torch.float32}


# --- models of transformers -------------------------------------------------------------------------------------------


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor, cache: Any, first: int) -> torch.Tensor:
    """Logits of the last token of a prompt of ``first`` tokens, and of all others, one by one."""
    found = []
    for part in (ids[:, :first], *ids[:, first:].split(1, 1)):
        found.append(model(part, past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.stack(found, 1)


def latent_model() -> Any:
    """DeepSeek-V2 without experts, whose products torch computes in no more than float32."""
    family = next(one for one in families() if "deepseek_v2" in one.types and not one.variant)
    return dataclasses.replace(family, config_type="deepseek_v2").build("sdpa", first_k_dense_replace=9)


MODELS = {"Llama": tiny_llama, "Mistral": lambda: windowed_model("Mistral", 40), "DeepSeek-V2": latent_model}


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(("preset", "tokens"), [("lossless", 150), ("base", EXACT - 20)])
@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers(name, cache, preset, tokens):
    model, ids = MODELS[name]().double(), torch.randint(1, 61, (2, tokens + 20))

    def made() -> Any:
        return cache(config=model.config, **({"max_cache_len": 200} if cache is StaticCache else {}))

    expected = logits_of(model, ids, made(), tokens)
    innerq(model, preset=preset)
    assert_exact(logits_of(model, ids, made(), tokens), expected)
    assert_served_by_the_reference()


@pytest.mark.slow
@pytest.mark.usefixtures("graphs_as_they_are")
def test_base_of_a_padded_llama_computes_what_the_method_says():
    model, config = tiny_llama(layers=2).double(), InnerQConfig.preset("base")
    inputs, tokens = prompt(2, 200, (0, 9)), torch.randint(1, 61, (2, 24))
    expected = reference_logits(model, inputs, tokens, config, norm="half64")
    innerq(model, config, key_norm="pair")
    mask, cache = inputs["attention_mask"], DynamicCache(config=model.config)
    with torch.no_grad():
        place = (mask.cumsum(1) - 1).clamp(min=0)
        found = [model(**inputs, position_ids=place, past_key_values=cache, use_cache=True).logits[:, -1]]
        for token in tokens[:, :-1].split(1, 1):
            mask = torch.cat((mask, mask.new_ones(2, 1)), 1)
            place = mask.sum(1, keepdim=True) - 1
            out = model(token, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True)
            found.append(out.logits[:, -1])
    assert_exact(torch.stack(found, 1), expected)


# --- with other dtypes ------------------------------------------------------------------------------------------------


def attend(program: Any, *dtypes: torch.dtype, preset: str = "lossless", tokens: int = 150) -> tuple[Any, Any, Any]:
    """A prompt and steps of ``program(q, k, v, keys, values)``, with caches and then other inputs of ``dtypes``."""
    held, given = dtypes

    def outputs(step: Any) -> tuple[list[torch.Tensor], Any]:
        torch.manual_seed(0)
        caches, found = [torch.zeros(2, 2, 0, 32, dtype=held) for _ in range(2)], []
        for count in (tokens, *[1] * 12):
            q, k, v = (torch.randn(2, heads, count, 32, dtype=F64).to(given) for heads in (4, 2, 2))
            out, *caches = step(q, k, v, *caches)
            found.append(out)
        return found, caches

    expected, _ = outputs(program)
    found, caches = outputs(torch.compile(program, backend=innerq_backend, options={"preset": preset}))
    return found, expected, caches


def repeated(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 1)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_an_attention_in_float64_over_caches_in_float32():
    def program(q, k, v, keys, values):
        keys, values = torch.cat([keys, k.float()], 2), torch.cat([values, v.float()], 2)
        weights = (q @ repeated(keys).double().mT * 0.2).softmax(-1)
        return weights @ repeated(values).double(), keys, values

    found, expected, caches = attend(program, torch.float32, F64)
    assert all(isinstance(cache, InnerQTensor) and cache.dtype == torch.float32 for cache in caches)
    for one, other in zip(found, expected, strict=True):
        assert_exact(one, other)
    assert [layer.kernel.served_by.name for report in compiled_graphs() for layer in report.layers].count("REFERENCE")


@pytest.mark.usefixtures("graphs_as_they_are")
def test_an_attention_in_float32_over_caches_in_float64():
    """It has the program's dtype, and is nearer to what it would be in float64 than the program's own."""

    def program(q, k, v, keys, values):
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        weights = (q.float() @ repeated(keys).float().mT * 0.2).softmax(-1)
        return weights @ repeated(values).float(), keys, values

    found, expected, caches = attend(program, F64, F64)
    assert all(isinstance(cache, InnerQTensor) and cache.dtype == F64 for cache in caches)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_queries_in_float32_over_caches_in_float64():
    """The output is the program's, in float64: that of the operator would have the dtype of the query."""

    def program(q, k, v, keys, values):
        keys, values = torch.cat([keys, k.double()], 2), torch.cat([values, v.double()], 2)
        weights = (q.double() @ repeated(keys).mT * 0.2).softmax(-1)
        return weights @ repeated(values), keys, values

    found, expected, caches = attend(program, F64, torch.float32, preset="base", tokens=EXACT - 12)
    assert all(isinstance(cache, InnerQTensor) and cache.dtype == F64 for cache in caches)
    for one, other in zip(found, expected, strict=True):
        assert_exact(one, other)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_autocast_leaves_float64_alone():
    model, ids = NanoGPT(batch=2).eval().double(), torch.randint(0, VOCAB, (2, 150))
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(model, ids, 8)
        innerq(model, preset="lossless")
        assert_exact(run(model, ids, 8), expected)
    assert_served_by_the_reference()


@pytest.mark.usefixtures("graphs_as_they_are")
def test_several_caches_in_one_softmax():
    """Sums of exponentials, by which the parts are weighed, are float64 as well."""

    def program(q, k, v, keys, values, other_keys, other_values):
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        both = (torch.cat([keys, other_keys], 2), torch.cat([values, other_values], 2))
        out = (q @ repeated(both[0]).mT * 0.2).softmax(-1) @ repeated(both[1])
        return out, keys, values

    def outputs(step: Any, make: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        caches = [make(torch.randn(2, 2, count, 32, dtype=F64), i) for count in (60, 90) for i in range(2)]
        found = []
        for _ in range(8):
            q, k, v = (torch.randn(2, heads, 1, 32, dtype=F64) for heads in (4, 2, 2))
            out, *caches[:2] = step(q, k, v, *caches)
            found.append(out)
        return found

    config = InnerQConfig.preset("base")
    compiled = torch.compile(program, backend=innerq_backend, options={"preset": "base"})
    expected = outputs(program, lambda x, i: x)
    found = outputs(compiled, lambda x, i: InnerQTensor.from_dense(x, config, role=("key", "value")[i]))
    for one, other in zip(found, expected, strict=True):
        assert_exact(one, other)
    assert_served_by_the_reference()
    assert all(report.layers for report in compiled_graphs())
