"""One recorded graph serves all lengths, with caches that grow and with preallocated ones.

Nobody has asked for it. Everything is ``lossless``, and compared with the program run eagerly. What can be known
without a GPU is asserted in ``tests/models/test_cuda_graph_inputs.py``.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, StaticCache

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, innerq
from innerq_compile.runtime.recording import Recording
from tests.helpers.buffer_loop import BufferDecoder, compiled_loops
from tests.helpers.models import assert_same_tokens, generate, prompt, tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    clear_reports()
    yield
    torch._dynamo.reset()


def recordings() -> int:
    """How many CUDA graphs this package has recorded in this process; Inductor records none."""
    from torch._inductor.cudagraph_trees import get_manager

    assert get_manager(torch.cuda.current_device(), create_if_none_exists=False) is None
    return sum(report.recorded for report in compiled_graphs())


def living() -> int:
    """How many recordings there are."""
    gc.collect()
    return sum(type(thing) is Recording for thing in gc.get_objects())


def assert_recorded(at_most: int, since: int = 0) -> None:
    """Graphs were recorded, no more than ``at_most`` since there were ``since``, and none was given up."""
    assert counters["inductor"]["cudagraph_skips"] == 0
    decoding = [report for report in compiled_graphs() if str(report.cuda_graphs).startswith("yes")]
    assert decoding and not any("no CUDA graph can serve" in str(report.cuda_graphs) for report in decoding)
    assert 1 <= recordings() - since <= at_most


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch,padding", [(1, ()), (2, (0, 41))], ids=["B1", "B2-padded"])
def test_generate(dtype, batch, padding):
    model = tiny_llama(layers=2, dtype=dtype).cuda()
    inputs = prompt(batch, 150, padding, device="cuda")
    expected_tokens, expected, _ = generate(model, inputs, 120)
    innerq(model, preset="lossless")
    recorded = recordings()
    for _ in range(2):
        tokens, logits, past = generate(model, inputs, 120)
        assert_same_tokens(tokens, logits, expected_tokens, expected, dtype)
        assert isinstance(past.layers[0].keys, InnerQTensor)
        assert recordings() - recorded <= 2, "one graph for all lengths, and one more where the storage grows"
        recorded = recordings()
    assert counters["inductor"]["cudagraph_skips"] == 0
    model._compiled_call_impl = None


@pytest.mark.parametrize("padding", [(0, 0, 0), (0, 41, 7)], ids=["whole", "padded"])
def test_batch_sizes(padding):
    """Each batch size has one recording, also where Dynamo has made it a symbol, and uses it again later."""
    dtype = torch.float16
    eager, model = (tiny_llama(layers=2, dtype=dtype).cuda() for _ in range(2))
    innerq(model, preset="lossless")
    for batch in (1, 2, 3, 2, 3):
        inputs = prompt(batch, 150, padding[:batch], device="cuda")
        before = recordings()
        tokens, logits, _ = generate(model, inputs, 40)
        expected_tokens, expected, _ = generate(eager, inputs, 40)
        assert_same_tokens(tokens, logits, expected_tokens, expected, dtype)
        assert recordings() - before <= 2, "one for the caches of this call"
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert not any("no CUDA graph can serve" in str(report.cuda_graphs) for report in compiled_graphs())


def test_reset_releases_what_was_recorded():
    """Otherwise NCCL waits for recorded collectives when a rank exits."""
    model = innerq(tiny_llama(layers=1, dtype=torch.float16).cuda(), preset="lossless")
    generate(model, prompt(1, 50, device="cuda"), 10)
    assert living() == 1
    torch.compiler.reset()
    assert living() == 0


def test_a_cache_that_grows(monkeypatch):
    """All steps but the first are played, also the one that finds more room: 16 blocks behind 11, which Triton would
    make another program of."""
    eager, model = (tiny_llama(layers=2, dtype=torch.float16).cuda() for _ in range(2))
    innerq(model, preset="lossless")
    ids, cache, found, played, play = (
        prompt(1, 560, device="cuda")["input_ids"],
        DynamicCache(),
        [],
        [],
        Recording.replay,
    )
    monkeypatch.setattr(Recording, "replay", lambda recording, inputs: played.append(1) or play(recording, inputs))
    capacities = set()
    with torch.no_grad():
        expected = eager(ids).logits[0, 360:]
        model(ids[:, :360], past_key_values=cache, use_cache=True)
        for place in range(360, 560):
            found.append(model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits[0, 0])
            capacities.add(cache.layers[0].keys.inner_tensors()["codes"].shape[2])
    torch.testing.assert_close(torch.stack(found), expected, atol=2e-2 * float(expected.abs().max()), rtol=0)
    assert capacities == {11, 16} and len(played) == 199
    assert recordings() == 2
    assert_recorded(2)


@pytest.mark.parametrize("options", [{"cuda_graphs": False}, {}, {"mode": "reduce-overhead"}], ids=str)
def test_results_of_a_step_are_not_overwritten(options):
    """They belong to the caller, as without recording; no call has to mark the begin of a step."""
    model = innerq(tiny_llama(layers=1, dtype=torch.float16).cuda(), preset="lossless", **options)
    ids, cache, kept = prompt(1, 60, device="cuda")["input_ids"], DynamicCache(), []
    with torch.no_grad():
        model(ids[:, :40], past_key_values=cache, use_cache=True)
        for place in range(40, 60):
            logits = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits
            kept.append((logits, logits.clone()))
    assert all(torch.equal(logits, then) for logits, then in kept)
    assert len({logits.data_ptr() for logits, _ in kept}) == len(kept)
    assert recordings() == (0 if options.get("cuda_graphs") is False else 1)


def test_two_caches_on_two_streams():
    """Without any wait: each stream has its own cache, and both use the buffers and the memory of the graph."""
    eager, model = (tiny_llama(layers=2, dtype=torch.float16).cuda() for _ in range(2))
    innerq(model, preset="lossless")
    texts = [prompt(1, 120, device="cuda")["input_ids"] for _ in range(2)]
    streams, caches, found = [torch.cuda.Stream() for _ in range(2)], [DynamicCache(), DynamicCache()], [[], []]
    with torch.no_grad():
        expected = [eager(text).logits[0, begin:] for text, begin in zip(texts, (40, 70), strict=True)]
        for text, cache, begin in zip(texts, caches, (40, 70), strict=True):
            model(text[:, :begin], past_key_values=cache, use_cache=True)
        torch.cuda.synchronize()
        for step in range(50):
            for text, cache, stream, logits, begin in zip(texts, caches, streams, found, (40, 70), strict=True):
                with torch.cuda.stream(stream):
                    ids = text[:, begin + step : begin + step + 1]
                    logits.append(model(ids, past_key_values=cache, use_cache=True).logits[0, 0])
        torch.cuda.synchronize()
    for logits, right in zip(found, expected, strict=True):
        right = right[: len(logits)]
        torch.testing.assert_close(torch.stack(logits), right, atol=2e-2 * float(right.abs().max()), rtol=0)
    assert_recorded(2)


def test_streams():
    """Steps alternate between two streams; the program waits for nothing but the cache."""
    eager, model = (tiny_llama(layers=2, dtype=torch.float16).cuda() for _ in range(2))
    innerq(model, preset="lossless")
    ids, cache = prompt(1, 100, device="cuda")["input_ids"], DynamicCache()
    streams = [torch.cuda.current_stream(), torch.cuda.Stream()]
    found = []
    with torch.no_grad():
        expected = eager(ids).logits[0, 40:]
        model(ids[:, :40], past_key_values=cache, use_cache=True)
        for place in range(40, 100):
            stream, other = streams[place % 2], streams[1 - place % 2]
            stream.wait_stream(other)
            with torch.cuda.stream(stream):
                found.append(model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits[0, 0])
        torch.cuda.synchronize()
    torch.testing.assert_close(torch.stack(found), expected, atol=2e-2 * float(expected.abs().max()), rtol=0)
    assert_recorded(1)


@torch.library.custom_op("innerq_tests::waits", mutates_args=())
def waits(x: torch.Tensor) -> torch.Tensor:
    return x * float(torch.isfinite(x).all().item())


waits.register_fake(torch.empty_like)


class Waiting(torch.nn.Module):
    """A decoder that waits for the device in the middle of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama(layers=1, dtype=torch.float16)

    def forward(self, ids, cache):
        return waits(self.model(ids, past_key_values=cache, use_cache=True).logits)


@torch.no_grad()
def test_what_cannot_be_recorded_runs_and_says_so():
    model = Waiting().cuda()
    ids, cache = prompt(1, 80, device="cuda")["input_ids"], DynamicCache()
    expected = model(ids, DynamicCache())[0, 60:]
    innerq(model, preset="lossless")
    model(ids[:, :60], cache)
    found = torch.cat([model(ids[:, place : place + 1], cache)[0] for place in range(60, 80)])
    torch.testing.assert_close(found, expected, atol=2e-2 * float(expected.abs().max()), rtol=0)
    assert recordings() == 0
    assert [str(report.cuda_graphs)[:21] for report in compiled_graphs() if report.kind == "decode"] == [
        "no: recording failed:"
    ]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").max() <= 1, "random generators work"
    room = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    del room
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before - (1 << 28), "the allocator gives back"
    other = innerq(tiny_llama(layers=1, dtype=torch.float16).cuda(), preset="lossless")
    generate(other, prompt(1, 50, device="cuda"), 10)
    assert recordings() == 1, "what comes behind is recorded as ever"


# --- preallocated caches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch,padding", [(1, ()), (2, (0, 41))], ids=["B1", "B2-padded"])
def test_generate_static(batch, padding):
    """transformers' own way to compile: an eager prefill, one recorded step; a new cache for each generate()."""
    dtype = torch.float16
    model = tiny_llama(layers=2, dtype=dtype).cuda()
    inputs = prompt(batch, 150, padding, device="cuda")
    options = {"cache_implementation": "static"}
    expected_tokens, expected, _ = generate(model, inputs, 60, **options, disable_compile=True)
    compile_config = CompileConfig(backend="innerq", mode=None, options={"preset": "lossless"})
    for _ in range(2):
        recorded = recordings()
        tokens, logits, _ = generate(model, inputs, 60, **options, compile_config=compile_config)
        assert_same_tokens(tokens, logits, expected_tokens, expected, dtype)
        assert_recorded(1, since=recorded)


def test_loop_over_a_static_cache():
    """innerq(model) compiles the prefill, too, so that transformers marks no buffer; the cache is used three times."""
    dtype = torch.float16
    model = tiny_llama(layers=2, dtype=dtype).cuda()
    texts = [prompt(1, tokens, device="cuda") for tokens in (150, 90, 140)]
    expected = [generate(model, text, 40) for text in texts]
    innerq(model, preset="lossless")
    cache, recorded = StaticCache(config=model.config, max_cache_len=200), recordings()
    for text, (expected_tokens, expected_logits, _) in zip(texts, expected, strict=True):
        cache.reset()
        tokens, logits, _ = generate(model, text, 40, past_key_values=cache)
        assert_same_tokens(tokens, logits, expected_tokens, expected_logits, dtype)
    assert_recorded(1, since=recorded)
    model._compiled_call_impl = None


@pytest.mark.parametrize("where", ["tensor", "number"])
@pytest.mark.parametrize("kind", ["argument", "registered", "quantized"])
def test_own_loop(kind, where):
    """Buffers of the user: arguments, buffers of the module, and ``empty_cache``; a later text begins at 0 again."""
    torch.manual_seed(1)
    model = BufferDecoder(layers=2, heads=4, head_dim=64, where=where).to("cuda", torch.float16).eval()
    recorded = recordings()
    for out, right in compiled_loops(kind, model, (2, 4, 300, 64), prompts=(140, 80), steps=60):
        torch.testing.assert_close(out, right, atol=2e-2 * float(right.abs().max()), rtol=0)
    assert_recorded(1, since=recorded)


def test_behind_the_end_of_a_buffer():
    """A write that leaves a gap is an error, also in a recorded graph. A failed assertion ends a CUDA process."""
    import subprocess
    import sys

    program = """
import torch
from innerq_compile import empty_cache, innerq
from tests.helpers.buffer_loop import BufferDecoder, decode
model = innerq(BufferDecoder(layers=1, heads=2, head_dim=64, where="tensor").cuda().eval(), preset="lossless")
buffers = [empty_cache(1, 2, 300, 64, role=role, config="lossless", device="cuda") for role in ("key", "value")]
decode(model, buffers, prompt=100, steps=5, seed=0)
torch.cuda.synchronize()
print("so far")
with torch.no_grad():
    model(torch.randn(1, 1, 128, device="cuda"), torch.tensor([120], device="cuda"), *buffers)
torch.cuda.synchronize()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "so far" in result.stdout, result.stderr[-2000:]
    assert result.returncode != 0
    assert "written behind the tokens that it holds" in result.stderr or "device-side assert" in result.stderr
