"""Compiled decode attention on a CUDA device: the template, its configurations, the combination, CUDA graphs."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache, run_and_get_code

from innerq_compile import innerq
from innerq_compile.kernels import lowering
from tests.helpers.lowering_cases import Layer
from tests.helpers.models import assert_same_tokens, generate, prompt, tiny_llama
from tests.helpers.strategies import make_format
from tests.helpers.triton_cases import Attention

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

F16, BF16 = torch.float16, torch.bfloat16
MODES = {
    "default": {},
    "max-autotune": {"max_autotune": True},
    "cuda-graphs": {"triton.cudagraphs": True},
    "dependent launch": {"triton.cudagraphs": True, "triton.enable_pdl": True},
}


def sampled(count: int, seed: int = 11) -> list[Attention]:
    """Cases that between them take every pair of bit widths at several head_dims, the rest drawn at random."""
    rng = random.Random(seed)
    pairs = list(itertools.product((2, 3, 4, 8), (2, 3, 4, 8), (64, 80, 96, 128, 256)))
    rng.shuffle(pairs)
    cases = []
    for k_bits, v_bits, head_dim in pairs[:count]:
        dtype, (sink, recent) = rng.choice([F16, BF16]), rng.choice([(32, 96), (4, 20), (0, 0)])
        modes = ["signed", "symmetric", "asymmetric", "hybrid"]
        key = make_format(
            "key", k_bits, rng.choice(modes), rng.choice([16, 32]) if head_dim != 80 else 16, sink, recent, dtype
        )
        value = make_format("value", v_bits, rng.choice(modes), 32, sink, recent, dtype)
        group, rows = rng.choice([(1, 1), (4, 1), (3, 1), (8, 1), (16, 1), (2, 4), (5, 3)])
        plain = rng.random() < 0.5
        cases.append(
            Attention(
                key, value, dtype, rng.choice([1, 2, 4, 8]), 4, group, rows, rng.choice([4096, 1000, 333, 60]),
                head_dim,
                padded=rng.random() < 0.3,
                mask="none" if plain else rng.choice(["bool", "added", "added-heads", "open", "open-added"]),
                softcap=0.0 if plain else rng.choice([0.0, 20.0]), sinks=rng.random() < 0.3,
                room=rng.choice([0, 1, 100]),
            )
        )  # fmt: skip
    return cases


def compiled(layer: Layer, **options):
    """The layer compiled by Inductor, and how many graphs that took."""
    from torch._inductor.compile_fx import compile_fx

    lowering.register()
    torch._dynamo.reset()
    graphs = []

    def backend(gm, examples):
        graphs.append(gm)
        return compile_fx(gm, examples, config_patches=options)

    return torch.compile(layer.call, backend=backend, fullgraph=True), graphs


def code_of(layer: Layer, **options) -> str:
    from torch._inductor.utils import run_and_get_code

    call, _ = compiled(layer, **options)
    result, (code, *_) = run_and_get_code(call, *layer.inputs)
    layer.check(result)
    return code


@pytest.mark.parametrize("case", sampled(40), ids=lambda case: case.id)
def test_default(case):
    layer = Layer(case, "cuda")
    call, _ = compiled(layer)
    result = call(*layer.inputs)
    layer.check(result)
    again = call(*layer.inputs)
    assert torch.equal(result, again), "two runs differ"


@pytest.mark.parametrize("case", sampled(8, seed=12), ids=lambda case: case.id)
def test_max_autotune(case):
    layer = Layer(case, "cuda")
    call, _ = compiled(layer, max_autotune=True)
    layer.check(call(*layer.inputs))


@pytest.mark.parametrize("case", sampled(6, seed=13), ids=lambda case: case.id)
def test_cuda_graphs(case):
    """Recorded and replayed, nothing skipped."""
    layer = Layer(case, "cuda")
    counters.clear()
    call, _ = compiled(layer, **{"triton.cudagraphs": True})
    for seed in range(4):
        other = Layer(case, "cuda", seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        result = call(*other.inputs).clone()
        other.check(result)
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.parametrize("fmt", [("signed", 32, 96), ("rolling", 0, 1000)], ids=str)
def test_one_graph_for_any_number_of_dropped_tokens(fmt):
    mode, sink, recent = fmt
    sides = (make_format(role, 3, mode, 32, sink, recent) for role in ("key", "value"))
    layer = Layer(Attention(*sides, F16, 2, 4, 4, 1, 2000, 128, hide=1500), "cuda")

    def program(like, *inputs):
        return layer.call(*inputs, dropped=like.shape[0] - 10)

    lowering.register()
    torch._dynamo.reset()
    counters.clear()
    call = torch.compile(program, fullgraph=True, dynamic=False)
    for dropped in (3, 1, 0, -7):
        like = torch.zeros(10 + dropped, device="cuda")
        torch._dynamo.mark_dynamic(like, 0)
        layer.given.dropped = dropped
        layer.check(call(like, *layer.inputs))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", MODES)
def test_one_graph_for_every_capacity(name):
    case = Attention(make_format("key", 3), make_format("value", 3), F16, 2, 4, 4, 1, 300, 128)
    layer = Layer(case, "cuda")
    call, graphs = compiled(layer, **MODES[name])
    for index in (4, 5, 8, 9):
        torch._dynamo.mark_dynamic(layer.inputs[index], 2)
    layer.check(call(*layer.inputs).clone())
    for changed in ({"tokens": 3000}, {"tokens": 20000, "room": 40}, {"tokens": 60}):
        other = Layer(dataclasses.replace(case, **changed), "cuda")
        torch.compiler.cudagraph_mark_step_begin()
        other.check(call(*other.inputs).clone())
    assert len(graphs) == 1


def test_three_kernels():
    """The query with RoPE and norm, the template, the combination with cast and transposition; no operator call."""
    case = Attention(make_format("key", 3), make_format("value", 3), F16, 4, 8, 4, 1, 4096, 128)
    code = code_of(Layer(case, "cuda"))
    assert code.count("async_compile.triton(") == 3 and "decode_attention.default(" not in code
    assert "triton_tem_fused" in code and "@launch.template(" in code


def test_registers_are_limited():
    """Inductor's launcher drops ``maxnreg``; the one of this package keeps it."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from innerq_compile.kernels.lowering import launch

    seen = []
    original = launch.LimitedRegisters._create_compile_options

    def spy(self, cfg, compile_meta):
        options = original(self, cfg, compile_meta)
        seen.append(options["maxnreg"])
        return options

    assert issubclass(launch.LimitedRegisters, CachingAutotuner)
    launch.LimitedRegisters._create_compile_options = spy
    try:
        case = Attention(make_format("key", 3), make_format("value", 3), F16, 3, 8, 4, 1, 2048, 128)
        layer = Layer(case, "cuda")
        call, _ = compiled(layer, compile_threads=1, fx_graph_cache=False)
        layer.check(call(*layer.inputs))
    finally:
        launch.LimitedRegisters._create_compile_options = original
    assert seen and set(seen) == {168}


@pytest.mark.parametrize(
    "options", [{"cuda_graphs": False}, {}, {"mode": "reduce-overhead"}, {"mode": "max-autotune"}], ids=str
)
def test_generate(options):
    """A decoder through ``backend="innerq"``: the tokens of the uncompiled one, no CUDA graph skipped."""
    torch._dynamo.reset()
    counters.clear()
    model = tiny_llama(layers=2, dtype=F16).cuda()
    inputs = prompt(2, 150, (0, 41), device="cuda")
    expected_tokens, expected, _ = generate(model, inputs, 100)
    innerq(model, preset="lossless", **options)
    tokens, logits, _ = generate(model, inputs, 100)
    assert_same_tokens(tokens, logits, expected_tokens, expected, F16)
    assert counters["inductor"]["cudagraph_skips"] == 0
    model._compiled_call_impl = None


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_dependent_launch(layers):
    """Kernels that start before the ones they depend on are done give the right numbers every time."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a GPU that launches kernels that way")
    torch._dynamo.reset()
    shape = {"layers": layers, "dtype": F16, "heads": 8, "kv_heads": 2, "head_dim": 128}
    eager, model = (tiny_llama(**shape).cuda() for _ in range(2))
    innerq(model, preset="lossless", **{"triton.enable_pdl": True})
    inputs = prompt(1, 500, device="cuda")
    caches = [each(**inputs, use_cache=True).past_key_values for each in (eager, model)]
    token = torch.ones(1, 1, dtype=torch.long, device="cuda")
    expected = [eager(token + i, past_key_values=caches[0]).logits for i in range(4)]
    with fresh_cache():
        _, codes = run_and_get_code(model, token, past_key_values=caches[1])
    templates = [
        text for code in codes for text in code.split("async_compile.triton(")[1:] if "triton_tem" in text[:12]
    ]
    ours = [text for text in templates if "wait_for_others" in text]
    assert len(ours) >= 3 and all("gdc_wait" in text and "'launch_pdl': True" in text for text in ours)
    seen = []
    for _ in range(40):
        caches[1].crop(-(caches[1].get_seq_length() - 500))
        seen.append([model(token + i, past_key_values=caches[1]).logits.clone() for i in range(4)])
    for again in seen:
        for logits, first, right in zip(again, seen[0], expected, strict=True):
            assert torch.equal(logits, first)
            assert (logits - right).abs().max() < 0.02 * right.abs().max()


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("name", MODES)
def test_row_linear(name, dtype):
    """The template, the operator's own kernel, and the library agree, with a bias and rows that are no whole tile."""
    widths, inputs = (4096, 1024, 77), 4096
    x, residual = torch.randn(1, 1, inputs, device="cuda", dtype=dtype), torch.randn(1, 1, sum(widths), device="cuda")
    weights = [torch.randn(width, inputs, device="cuda", dtype=dtype) / inputs**0.5 for width in widths]
    biases = [None, torch.randn(widths[1], device="cuda", dtype=dtype), None]

    def program(x, residual):
        return torch.ops.innerq.row_linear(x, weights, biases) + residual

    lowering.register()
    torch._dynamo.reset()
    call = torch.compile(program, fullgraph=True, options=MODES[name])
    expected = torch.cat(
        [
            torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
            for weight, bias in zip(weights, biases, strict=True)
        ],
        -1,
    )
    for _ in range(3):
        out = call(x, residual).double() - residual.double()
        assert (out - expected).abs().max() < (2e-3 if dtype == F16 else 2e-2) * expected.abs().max()
    out = torch.ops.innerq.row_linear(x, weights, biases).double()
    assert (out - expected).abs().max() < (1e-3 if dtype == F16 else 8e-3) * expected.abs().max()
