"""The benchmark of architectures: shapes, sizes, the comparison, and a whole run of tiny models."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys

import pytest
import torch

from tests.helpers.scripts import ROOT, script
from tests.helpers.torchrun import environment

pytest.importorskip("rich")
pytest.importorskip("transformers")
architectures, once = script("benchmarks/architectures"), script("benchmarks/architecture_once")
shapes, processes = script("benchmarks/architecture_shapes"), script("benchmarks/processes")
SCRIPT = ROOT / "benchmarks/architectures.py"


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_models_have_both_kinds_of_layers(name):
    shape = shapes.SHAPES[name]
    for layers in (2, 8):
        config = shape.make_config(layers, 1 << 18)
        assert config.num_hidden_layers == layers and config.max_position_embeddings >= 1 << 18
        assert set(shape.pattern) <= set(getattr(config, "layer_types", None) or ())


def test_weights_of_a_step_are_the_active_experts():
    model = once.make_model("qwen3-moe", 1, 64, "cpu", tiny=True)
    embeddings, experts = model.model.embed_tokens.weight, model.model.layers[0].mlp.experts
    every = sum(parameter.nbytes for parameter in model.parameters()) - embeddings.nbytes
    idle = sum(parameter.nbytes for parameter in experts.parameters())
    assert once.weight_bytes(model, 1) == every - idle * 3 // 4  # two of eight
    assert once.weight_bytes(model, 2) == every - idle * 9 // 16


def test_tied_embeddings_are_read_once():
    model = once.make_model("gemma3", 1, 64, "cpu", tiny=True)
    assert once.weight_bytes(model, 1) == sum(parameter.nbytes for parameter in model.parameters())


def test_bytes_of_a_cache():
    class Layer:
        def __init__(self):
            self.keys = self.same = torch.zeros(2, 3)
            self.states = {0: [torch.zeros(5)], 1: None}

    class Cache:
        layers = (Layer(), Layer())

    assert once.cache_bytes(Cache()) == 2 * 4 * (6 + 5)


def test_comparison():
    size = {"batch": 2, "tokens": 64, "weight_bytes": 3_000_000}

    def result(model, side, **row):
        return {"model": model, "side": side, "rows": [size | row]}

    results = [
        result("m", "innerq", tokens_per_s=500.0, step_ms=2.0, cache_bytes=1_000_000),
        result("m", "eager", tokens_per_s=50.0, step_ms=20.0, cache_bytes=4_000_000),
        result("m", "static", tokens_per_s=250.0, step_ms=4.0, cache_bytes=5_000_000),
        result("m", "compile", failed="RuntimeError: no"),
        result("n", "innerq", failed="RuntimeError: no"),
        {"model": "n", "side": "eager", "failed": "exit code 1"},
    ]
    results[1]["rows"].append({"batch": 8, "tokens": 64, "failed": "OutOfMemoryError: no"})
    first, second, third = architectures.comparison(results, read_gb_s=4.0)
    assert (first["batch"], first["tokens"], first["ratio"]) == (2, 64, 2.0)
    assert (first["limit_ms"], first["of_limit"]) == (1.0, 0.5)
    assert (first["dense_bytes"], first["dense_share"]) == (4_000_000, 4 / 7)
    assert not second["tokens_per_s"] and second["batch"] == 8 and not third["tokens_per_s"]


def test_who_ran_out_of_memory_runs_again():
    rows = [{"failed": "torch.OutOfMemoryError: CUDA out of memory"}]
    assert architectures.ran_out_of_memory({"rows": rows}) and architectures.ran_out_of_memory(rows[0])
    assert not architectures.ran_out_of_memory({"rows": [{"failed": "RuntimeError: no"}], "first_requests": [{"s": 1}]})


def test_the_result_with_more_figures_is_kept():
    """A process that had no memory beside others may have none alone, or be stopped by the clock."""
    fails, good = {"failed": "OutOfMemoryError"}, {"tokens_per_s": 1.0}
    results = [
        {"failed": "OutOfMemoryError"},
        {"rows": [fails, fails]},
        {"rows": [good]},
        {"rows": [good, fails, good]},
    ]
    assert [architectures.measured_rows(result) for result in results] == [0, 0, 1, 2]


PROGRAM = f"""
import json, sys, time
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import processes
deadline = time.time() + float(sys.argv[1])
longest, last = 0, time.time()
while last < deadline:  # prepares
    now = time.time()
    longest, last = max(longest, now - last), now
processes.ready()
began = time.time()
processes.report({{"longest": longest, "began": began}})
with processes.quiet():
    time.sleep(0.5)
if sys.argv[2:]:
    time.sleep(60)
print(json.dumps({{"longest": longest, "began": began, "ended": time.time()}}))
"""


def test_others_stand_still_while_one_is_timed(tmp_path):
    """On one device: who is ready first is timed first, and meanwhile nobody prepares, or is timed as well."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    turns = processes.Turns()

    def run(seconds):
        return processes.measured(str(program), [seconds], turns=turns)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first, second, failed = pool.map(run, ("2", "6", "no number"))
    assert "could not convert" in failed["failed"]
    assert first["began"] < first["ended"] < second["began"]
    assert first["longest"] < 0.5 <= second["longest"]


def test_what_a_process_has_reported_is_kept(tmp_path):
    """It is stopped by the clock, and holds up nobody who waits for a turn."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    turns = processes.Turns()
    found = processes.measured(str(program), ["0", "forever"], seconds=5, turns=turns)
    assert found["failed"] == "not done after 5 s" and "began" in found and "ended" not in found
    assert "ended" in processes.measured(str(program), ["0"], turns=turns)


def test_reason_of_a_failure():
    trace = "Traceback (most recent call last):\n  raise\ntorch._inductor.exc.InductorError: RuntimeError: no\n\nSet X"
    assert processes.reason_of(trace, 1) == "torch._inductor.exc.InductorError: RuntimeError: no"
    assert processes.reason_of("one\nKilled\n", -9) == "Killed"
    assert processes.reason_of("", -9) == "exit code -9, no message"


def run(tmp_path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    file = tmp_path / "out.json"
    options = "--tiny --device cpu --layers 2 --batch 1 2 --tokens 40 --new 8 --models llama"
    command = [sys.executable, str(SCRIPT), *options.split(), *arguments, "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    return done, json.loads(file.read_text())


def test_a_failure_is_a_row_and_an_exit_code(tmp_path):
    done, found = run(tmp_path, "--sides", "eager", "--fill", "--timeout", "0.1")
    assert done.returncode == 1 and found["results"][0]["failed"] == "not done after 0 s"
    assert "not done after" in done.stdout


@pytest.mark.slow
def test_a_run(tmp_path):
    done, found = run(tmp_path, "--sides", "innerq", "eager", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    sides = {result["side"]: result for result in found["results"]}
    assert sides["innerq"]["not_rewritten"] == [] and sides["innerq"]["graphs"] > 0
    assert [(row["batch"], row["quantized"], row["layers"]) for row in sides["innerq"]["rows"]] == [
        (1, 2, 2),
        (2, 2, 2),
    ]
    assert [(row["quantized"], row["cache"]) for row in sides["eager"]["rows"]] == [(0, "DynamicCache")] * 2
    for row in found["comparison"]:
        assert row["ratio"] > 0 and row["of_limit"] > 0 and found["read_gb_s"] > 0
    assert "innerq / best" in done.stdout
