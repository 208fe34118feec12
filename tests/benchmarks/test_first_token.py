"""The benchmark of first tokens: when steps count as fast, its options, and a whole run in processes."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import accumulate

import pytest

from tests.helpers.scripts import ROOT, script
from tests.helpers.torchrun import environment

pytest.importorskip("rich")
pytest.importorskip("transformers")
first_token, requests = script("benchmarks/first_token"), script("benchmarks/requests_from_start")


@pytest.mark.parametrize(
    ("steps", "fast"),
    [
        ([1.0] * 8, 10),  # from the first token on
        ([30.0, 1, 20, 1, 1, 1.1, 1, 1], 61),  # one fast step between two that compile does not count
        ([5.0, 4, 3, 2, 1, 9, 1, 1], None),
    ],
)
def test_when_steps_are_fast(steps, fast):
    assert requests.fast_from(list(accumulate(steps, initial=10.0))) == fast


def test_options_and_a_second_innerq_with_others(monkeypatch):
    options = ["--option", "recent=64", "preset=small", "--versus", "recent=128", "mode=default"]
    monkeypatch.setattr(sys, "argv", ["first_token.py", "--sides", "innerq", "eager", *options])
    runs = first_token.runs_of(first_token.arguments())
    assert runs == [
        ("innerq recent=64 preset=small", "innerq", {"recent": 64, "preset": "small"}),
        (
            "innerq recent=64 preset=small recent=128 mode=default",
            "innerq",
            {"recent": 128, "preset": "small", "mode": "default"},
        ),
        ("eager", "eager", {}),
    ]
    with pytest.raises(SystemExit, match="recent: write it as NAME=VALUE"):
        first_token.options_of(["recent"])


def run(tmp_path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    sizes = "--layers 1 --hidden 64 --head-dim 16 --vocabulary 100 --prompt 40 --tokens 8 --repeats 1 --threads 1"
    file = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks/first_token.py"), *sizes.split(), *arguments, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    return done, json.loads(file.read_text())["results"]


def test_a_failure_is_a_row_and_an_exit_code(tmp_path):
    done, (failed,) = run(tmp_path, "--sides", "innerq", "--caches", "cold", "--option", "sinks=3")
    assert done.returncode == 1 and "option 'sinks' is unknown" in failed["failed"]
    assert failed["failed"][:40] in done.stdout


@pytest.mark.slow
def test_a_run(tmp_path):
    done, results = run(tmp_path, "--sides", "innerq", "eager")
    assert done.returncode == 0, done.stdout + done.stderr
    cold, warm, eager = results
    assert (cold["graphs_from_cache"], warm["graphs_compiled"]) == (0, 0)
    assert warm["graphs_from_cache"] == warm["graphs"] == cold["graphs"] > 0 == eager["graphs"]
    assert eager["first_token_s"] < warm["first_token_s"] < cold["first_token_s"]
    assert all(result["step_ms"] > 0 and result["peak_gib"] > 0 for result in results)
    assert "step, ms" in done.stdout
