"""Recording that nobody has asked for changes nothing but the speed, whatever the program does around it.

Everything is ``lossless``, and compared with the program run eagerly. Decisions that need no GPU are asserted in
``tests/compiler/test_execution.py``.
"""

from __future__ import annotations

import gc
import logging
import threading
import time

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from innerq_compile import clear_reports, compiled_graphs, explain, innerq
from innerq_compile.kernels.internals import cuda
from innerq_compile.runtime.recording import Recording
from innerq_compile.runtime.recordings import MAX_OUTLIVED
from tests.helpers.models import prompt, tiny_llama
from tests.helpers.programs import TinyAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

F16 = torch.float16


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    clear_reports()
    yield
    torch._dynamo.reset()


def decode_reports():
    return [report for report in compiled_graphs() if report.kind == "decode"]


def recorded() -> int:
    """How many CUDA graphs this package has recorded; Inductor has none."""
    from torch._inductor.cudagraph_trees import get_manager

    assert get_manager(torch.cuda.current_device(), create_if_none_exists=False) is None
    return sum(report.recorded for report in compiled_graphs())


def living() -> int:
    gc.collect()
    return sum(type(thing) is Recording for thing in gc.get_objects())


def pair(**kwargs):
    """A model, and the same one to be compiled."""
    return tuple(tiny_llama(layers=2, dtype=F16, **kwargs).cuda() for _ in range(2))


def feed(model, ids: torch.Tensor, cache: DynamicCache, begin: int, end: int) -> torch.Tensor:
    """Logits ``[end - begin, vocabulary]`` of tokens that are given one by one."""
    return torch.stack(
        [model(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits[0, 0] for at in range(begin, end)]
    )


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-2 * float(expected.abs().max()), rtol=0)


# --- the option -------------------------------------------------------------------------------------------------------


class Own(TinyAttention):
    """A decoder of one attention, for `innerq` on a class."""

    def __init__(self) -> None:
        super().__init__(heads=4, kv_heads=2, head_dim=64)


@torch.no_grad()
def run_own(model, steps: int = 8) -> torch.Tensor:
    """Outputs ``[steps, width]`` behind a prompt."""
    torch.manual_seed(5)
    x = torch.randn(1, 60 + steps, 256).to("cuda", F16)
    _, cache = model(x[:, :60])
    outs = []
    for at in range(60, 60 + steps):
        out, cache = model(x[:, at : at + 1], cache)
        outs.append(out[0, 0])
    return torch.stack(outs)


def own() -> Own:
    torch.manual_seed(0)
    return Own().cuda().half()


@pytest.mark.parametrize("how", ["innerq", "class", "function", "torch.compile"])
def test_every_way_to_compile(how):
    expected = run_own(own())
    if how == "innerq":
        model = innerq(own(), preset="lossless")
    elif how == "class":
        torch.manual_seed(0)
        model = innerq(preset="lossless")(type("Class", (Own,), {}))().cuda().half()
    elif how == "function":
        inner = own()
        model = innerq(lambda x, cache=None: inner(x, cache), preset="lossless")
    else:
        model = torch.compile(own(), backend="innerq", options={"preset": "lossless"})
    assert_near(run_own(model), expected)
    assert recorded() == 1 and str(decode_reports()[-1].cuda_graphs) == "yes; by default"


@pytest.mark.parametrize("options", [{"cuda_graphs": False}, {"triton.cudagraphs": False}], ids=str)
def test_switched_off(options):
    expected = run_own(own())
    assert_near(run_own(torch.compile(own(), backend="innerq", options={"preset": "lossless", **options})), expected)
    assert recorded() == 0 and str(decode_reports()[-1].cuda_graphs) == "switched off"


def test_explain_says_so():
    model = innerq(tiny_llama(layers=2, dtype=F16).cuda(), preset="lossless")
    assert "CUDA graphs of decode steps: yes; by default" in str(explain(model, **prompt(1, 50, device="cuda")))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["inference", "grad"])
def test_modes_of_autograd(mode):
    """Results are what they are without recording: inference tensors in inference mode, never with a gradient."""
    eager, model = pair()
    innerq(model.requires_grad_(False), preset="lossless")
    ids, cache = prompt(1, 70, device="cuda")["input_ids"], DynamicCache()
    expected = eager(ids).logits[0, 50:]
    with torch.inference_mode() if mode == "inference" else torch.enable_grad():
        model(ids[:, :50], past_key_values=cache, use_cache=True)
        found = [model(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits for at in range(50, 70)]
        assert all(one.is_inference() == (mode == "inference") and not one.requires_grad for one in found)
    assert_near(torch.cat(found, 1)[0], expected)
    assert recorded() == 1


# --- memory -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_new_caches_for_every_request():
    """Few recordings outlive their caches, and memory does not grow."""
    eager, model = pair()
    innerq(model, preset="lossless")
    ids = prompt(1, 90, device="cuda")["input_ids"]
    expected = eager(ids).logits[0, 70:]
    caches, sizes = [], []
    for _ in range(4 * MAX_OUTLIVED):
        caches.append(DynamicCache())
        model(ids[:, :70], past_key_values=caches[-1], use_cache=True)
        assert_near(feed(model, ids, caches[-1], 70, 90), expected)
        if len(caches) == 3:  # the last two live on, so that a new cache lies elsewhere
            del caches[0]
        gc.collect()
        torch.cuda.synchronize()
        sizes.append(torch.cuda.memory_allocated())
        assert living() <= MAX_OUTLIVED + 1 + len(caches), "one may have lost its cache since the last was recorded"
    assert max(sizes[-MAX_OUTLIVED:]) <= max(sizes[: 2 * MAX_OUTLIVED]) + (1 << 20), sizes


@torch.library.custom_op("innerq_tests::hungry", mutates_args=())
def hungry(x: torch.Tensor) -> torch.Tensor:
    """Takes more memory than there is, but only while it is recorded."""
    if torch.cuda.is_current_stream_capturing():
        torch.empty(1 << 48, dtype=torch.uint8, device=x.device)
    return x.clone()


hungry.register_fake(torch.empty_like)


class Hungry(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama(layers=1, dtype=F16)

    def forward(self, ids, cache):
        return hungry(self.model(ids, past_key_values=cache, use_cache=True).logits)


@torch.no_grad()
def test_no_memory_to_record(caplog):
    model = Hungry().cuda()
    ids, cache = prompt(1, 80, device="cuda")["input_ids"], DynamicCache()
    expected = model(ids, DynamicCache())[0, 60:]
    innerq(model, preset="lossless")
    with caplog.at_level(logging.WARNING, "innerq_compile"):
        model(ids[:, :60], cache)
        found = torch.cat([model(ids[:, at : at + 1], cache)[0] for at in range(60, 80)])
    assert_near(found, expected)
    assert recorded() == 0
    (report,) = decode_reports()
    assert str(report.cuda_graphs).startswith("no: recording failed: ") and "out of memory" in str(report.cuda_graphs)
    assert caplog.text.count("runs without CUDA graphs: recording failed") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").max() <= 1, "random generators work"
    other = innerq(own(), preset="lossless")
    run_own(other)
    assert recorded() == 1, "what comes behind is recorded as ever"


@torch.no_grad()
def test_recording_leaves_the_memory_that_the_allocator_keeps():
    """The next prompt would have to allocate it anew."""
    model = innerq(own(), preset="lossless")
    room = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    del room
    before = torch.cuda.memory_reserved()
    run_own(model)
    assert recorded() == 1 and torch.cuda.memory_reserved() >= before


# --- what else the process does ---------------------------------------------------------------------------------------


def beside(work, count: int) -> None:
    """Run ``work(0)`` to ``work(count - 1)`` in a thread each, and raise what they raise."""
    failures: list[BaseException] = []

    def body(number: int) -> None:
        try:
            with torch.no_grad():
                work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@torch.no_grad()
def test_threads_that_sample():
    """Several threads at the same time are not recorded, since others draw random numbers; a thread alone is again."""
    eager, model = pair()
    innerq(model, preset="lossless")
    texts = [prompt(1, 90, device="cuda")["input_ids"] for _ in range(3)]
    expected = [eager(text).logits[0, 70:] for text in texts]
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    kept: list[DynamicCache] = []
    for text in texts:  # compiled in one thread
        cache = DynamicCache()
        model(text[:, :70], past_key_values=cache, use_cache=True)
        feed(model, text, cache, 70, 73)
    torch.cuda.synchronize()
    before = recorded()
    together = threading.Barrier(len(texts), timeout=300)

    def work(number: int, wait=lambda: None) -> None:
        wait()
        for _ in range(8):
            cache = DynamicCache()
            kept.append(cache)  # so that the next one lies elsewhere
            model(texts[number][:, :70], past_key_values=cache, use_cache=True)
            logits = []
            for at in range(70, 90):
                logits.append(feed(model, texts[number], cache, at, at + 1))
                probabilities = torch.softmax(logits[-1].float(), -1)
                assert 0 <= int(torch.multinomial(probabilities, 1)) < probabilities.shape[-1]
                torch.rand(1000, device="cuda")
            found[number].append(torch.cat(logits))
        wait()  # a thread whose neighbours have ended is alone

    beside(lambda number: work(number, together.wait), len(texts))
    for logits, right in zip(found, expected, strict=True):
        for one in logits:
            assert_near(one, right)
    assert recorded() == before
    assert any("several threads" in str(report.cuda_graphs) for report in compiled_graphs())
    time.sleep(1.1)
    beside(work, 1)
    assert recorded() > before
    assert not any("several threads" in str(report.cuda_graphs) for report in compiled_graphs())
    assert not any("failed" in str(report.cuda_graphs) for report in compiled_graphs())


@torch.no_grad()
def test_a_thread_for_each_request():
    """As of programs that stream the text that ``generate`` makes in a thread. Memory does not grow with requests."""
    eager, model = pair()
    innerq(model, preset="lossless")
    text, reserved = prompt(1, 90, device="cuda")["input_ids"], []
    expected = eager(text).logits[0, 70:]

    def work(_: int) -> None:
        cache = DynamicCache()
        model(text[:, :70], past_key_values=cache, use_cache=True)
        assert_near(feed(model, text, cache, 70, 90), expected)

    for _ in range(12):
        beside(work, 1)
        gc.collect()
        reserved.append(torch.cuda.memory_reserved())
    assert 1 <= recorded() <= 12 and living() <= MAX_OUTLIVED + 1
    assert reserved[-1] <= reserved[5] + (1 << 22), reserved


@torch.no_grad()
def test_a_thread_that_waits_for_the_device():
    """It waits for its own work while another thread records."""
    eager, model = pair()
    innerq(model, preset="lossless")
    text, done = prompt(1, 90, device="cuda")["input_ids"], threading.Event()
    expected, kept = eager(text).logits[0, 70:], []

    def work(number: int) -> None:
        if number == 1:
            while not done.is_set():
                torch.empty(1 << 22, device="cuda").sum().item()
                torch.cuda.current_stream().synchronize()
            return
        try:
            for _ in range(8):
                kept.append(DynamicCache())
                model(text[:, :70], past_key_values=kept[-1], use_cache=True)
                assert_near(feed(model, text, kept[-1], 70, 90), expected)
        finally:
            done.set()

    beside(work, 2)


@torch.no_grad()
def test_inside_of_a_cuda_graph_of_the_user():
    """The step is part of it, kernel by kernel; steps before and behind it are recorded as ever."""
    expected = run_own(own(), steps=12)
    model = innerq(own(), preset="lossless")
    torch.manual_seed(5)
    x = torch.randn(1, 72, 256).to("cuda", F16)
    _, cache = model(x[:, :60])
    outs = []
    for at in range(60, 72):
        token = x[:, at : at + 1].clone()
        if at != 66:
            out, cache = model(token, cache)
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out, cache = model(token, cache)
            graph.replay()
        outs.append(out[0, 0].clone())
    assert_near(torch.stack(outs), expected)
    assert recorded() == 1


class Noisy(Own):
    """Draws random numbers in every step."""

    def forward(self, x, past=None, mask=None):
        out, cache = super().forward(x, past, mask)
        return out, cache, torch.rand(4, device=x.device)


@torch.no_grad()
def noise(steps: int = 8, **options) -> torch.Tensor:
    """The random numbers of steps behind a prompt, and one drawn behind them."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = innerq(Noisy().cuda().half(), preset="lossless", **options)
    x = torch.randn(1, 60 + steps, 256).to("cuda", F16)
    torch.cuda.manual_seed(3)
    _, cache, _ = model(x[:, :60])
    drawn = []
    for at in range(60, 60 + steps):
        _, cache, numbers = model(x[:, at : at + 1], cache)
        drawn.append(numbers)
    return torch.stack([*drawn, torch.rand(4, device="cuda")])


def test_random_numbers():
    """A recording draws the numbers that its kernels would draw, and advances the program's generator as they do."""
    plain = noise(cuda_graphs=False)
    assert len({tuple(row) for row in plain.tolist()}) == len(plain)
    assert torch.equal(noise(mode="reduce-overhead"), plain)
    assert recorded() == 1
    assert torch.equal(noise(), plain)
    report = decode_reports()[-1]
    if cuda.CAPTURES_GENERATOR:
        assert report.recorded == 0 and str(report.cuda_graphs).startswith("no: it draws random numbers")
    else:
        assert report.recorded == 1


@torch.no_grad()
def test_random_numbers_of_the_program_are_its_own():
    """Of a program that draws between its steps; those steps have none."""

    def drawn(**options) -> torch.Tensor:
        torch._dynamo.reset()
        model = innerq(own(), preset="lossless", **options)
        x = torch.randn(1, 70, 256).to("cuda", F16)
        _, cache = model(x[:, :60])
        torch.cuda.manual_seed(3)
        numbers = []
        for at in range(60, 70):
            _, cache = model(x[:, at : at + 1], cache)
            numbers.append(torch.rand(4, device="cuda"))
        return torch.stack(numbers)

    assert torch.equal(drawn(), drawn(cuda_graphs=False))
    assert recorded() == 1


@torch.no_grad()
def test_deterministic_algorithms():
    expected = run_own(own())
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert_near(run_own(innerq(own(), preset="lossless")), expected)
    finally:
        torch.use_deterministic_algorithms(False)
    assert recorded() == 0
    assert str(decode_reports()[-1].cuda_graphs) == "no: deterministic algorithms are enabled"


@torch.no_grad()
def test_steps_of_many_tokens_run_as_they_are():
    """They keep the GPU busy by themselves, and a recording would hold their intermediate results."""
    x = torch.randn(1, 60 + 4 * 640, 256).to("cuda", F16)

    def run(model) -> torch.Tensor:
        _, cache = model(x[:, :60])
        outs = []
        for begin in range(60, x.shape[1], 640):
            mask = torch.ones(640, begin + 640, dtype=torch.bool, device="cuda").tril(begin)
            out, cache = model(x[:, begin : begin + 640], cache, mask)
            outs.append(out)
        return torch.cat(outs, 1)

    expected = run(own())
    assert_near(run(innerq(own(), preset="lossless")), expected)
    assert recorded() == 0
    assert all(str(report.cuda_graphs).startswith("no: ") for report in compiled_graphs())
