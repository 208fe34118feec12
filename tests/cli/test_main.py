"""The command line: each command on a tiny model, JSON, exit codes, errors."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from innerq_compile.cli.main import main
from innerq_compile.kernels import lowering
from tests.helpers.scripts import ROOT
from tests.helpers.torchrun import environment

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(autouse=True)
def cheap(graphs_as_they_are):
    pytest.importorskip("rich")
    pytest.importorskip("transformers")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def run_json(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_generate(tiny_model, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("once upon a time")
    common = ("generate", tiny_model, "--tokens", "6", "--compare", "eager", "--preset", "lossless")
    result = run_json(capsys, *common, "--file", tmp_path / "prompt.txt")
    assert result["prompt_tokens"] == 16 and len(result["innerq"]["tokens"]) == 6
    assert result["equal_from_start"] == 6 and result["innerq"]["tokens"] == result["plain"]["tokens"]
    assert result["plain"]["cache_bytes"] == 2 * 2 * 2 * 64 * 21 * 4
    code, out, _ = run(capsys, *common, "--prompt", "once upon a time")
    assert code == 0 and result["text"][-4:] in out and "cache, bytes" in out and "6 of 6" in out


def test_explain(tiny_model, tmp_path, capsys):
    page, dump = tmp_path / "e.html", tmp_path / "dump"
    result = run_json(
        capsys, "explain", tiny_model, "--html", page, "--dump", dump, "--preset", "small", "--option", "recent=64"
    )
    assert result["rewritten"] == 2 and result["rows"][0]["preset"] == "small, recent=64"
    assert page.exists() and (dump / "index.html").exists()
    torch._dynamo.reset()
    code, out, _ = run(capsys, "explain", tiny_model)
    assert code == 0 and out.startswith("2 of 2 attentions work on a quantized cache")


@pytest.mark.slow
def test_fidelity(tiny_model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ("fidelity", tiny_model, "--text", tmp_path / "text.txt", "--context", "200", "--tokens", "12")
    result = run_json(capsys, *arguments, "--preset", "lossless", "tiny")
    lossless, tiny = result["presets"]["lossless"], result["presets"]["tiny"]
    assert abs(lossless["kl_mean"]) < 1e-4 < 1e-3 < tiny["kl_mean"]
    assert lossless["top1_agreement"] == 1.0 and lossless["perplexity"] == pytest.approx(result["perplexity"], rel=1e-3)
    assert tiny["quantized_layers"] == tiny["layers"] == 2 and tiny["cache_bytes"] < lossless["cache_bytes"]
    code, _, err = run(capsys, *arguments[:4], "--context", "5000")
    assert code == 2 and "give a longer text, or smaller numbers" in err


@pytest.mark.slow
def test_bench(tiny_model, tmp_path, capsys):
    chart = ["--plot", tmp_path / "b.png"] if importlib.util.find_spec("matplotlib") is not None else []
    result = run_json(capsys, "bench", tiny_model, "--context", "160", "320", "--steps", "2", *chart)
    assert [row["context"] for row in result["attention"]] == [160, 320]
    assert all(row["innerq_ms"] > 0 and row["kernel"] for row in result["attention"])
    assert result["steps"][1]["inductor_bytes"] > result["steps"][0]["inductor_bytes"]
    assert not chart or (tmp_path / "b.png").stat().st_size > 5000
    code, out, _ = run(capsys, "bench", "--context", "160", "--steps", "1", "--attention-only")
    assert code == 0 and "append + attention of a layer" in out


@pytest.fixture
def cache_folders(tmp_path, monkeypatch):
    """The folders of caches are set, so that what a command sets is undone."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "cache"


def test_warm_up(tiny_model, cache_folders, capsys):
    arguments = ("warm-up", tiny_model, "--prompt-tokens", "40", "50", "--batch", "2", "--new-tokens", "3")
    result = run_json(capsys, *arguments, "--cache-dir", cache_folders)
    assert [request["name"] for request in result["requests"]] == ["2 x 40 tokens", "2 x 50 tokens"]
    assert {graph["kind"] for graph in result["graphs"]} == {"prefill", "decode"}
    assert result["variables"] == {
        "TORCHINDUCTOR_CACHE_DIR": str(cache_folders),
        "TRITON_CACHE_DIR": str(cache_folders / "triton"),
    }
    code, out, _ = run(capsys, *arguments, "--generate", "num_beams=2")
    assert code == 0 and "2 x 40 tokens" in out and f"  TORCHINDUCTOR_CACHE_DIR={cache_folders}" in out


def test_warm_up_without_weights(tiny_model, tmp_path, capsys, cache_folders):
    shutil.copyfile(tiny_model / "config.json", tmp_path / "config.json")
    arguments = ("warm-up", tmp_path, "--prompt-tokens", "40")
    assert run(capsys, *arguments)[0] == 1
    assert run_json(capsys, *arguments, "--random-weights")["graphs"][0]["rewritten"] == 2


@pytest.mark.slow
def test_warm_up_is_for_other_weights_and_a_check_is_true(tiny_model, tmp_path):
    """What random weights leave on the disk serves the model with its weights. A check fails where that is not so."""
    folder = tmp_path / "cache"
    settings = {**environment(), "TORCHINDUCTOR_COMPILE_THREADS": "1"}

    def warm_up(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "innerq_compile", "warm-up", str(tiny_model), "--prompt-tokens", "40"]
        command += ["--threads", "1", "--cache-dir", str(folder), "--json", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings | variables)

    first = json.loads(warm_up("--random-weights").stdout)
    second = json.loads(warm_up("--check").stdout)
    assert first["compiled"] > 0 == first["from_disk"]
    assert (second["compiled"], second["from_disk"]) == (0, first["compiled"])
    assert second["check"]["from_disk"] == first["compiled"]
    failed = warm_up("--check", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert failed.returncode == 1 and "found 0 on the disk" in failed.stderr


def test_env_as_a_program():
    done = subprocess.run([sys.executable, "-m", "innerq_compile", "env", "--json"], capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["torch"] == torch.__version__ and result["torch_supported"]
    assert result["missing"] == {}
    triton = result["packages"]["triton"] is not None
    assert result["traces"] == {"folder": result["traces"]["folder"], "off": None}
    assert result["lowerings"]["done"] == triton and (triton or "not installed" in result["lowerings"]["reason"])


def test_env_says_what_this_torch_lacks(monkeypatch, capsys):
    """It also says what happens without each missing name."""
    monkeypatch.delattr("torch._inductor.select_algorithm.SymbolicGridFn")
    lacking = lowering.Registration(False, "this torch lacks SymbolicGridFn", ("SymbolicGridFn",))
    monkeypatch.setattr(lowering, "register", lambda: lacking)
    code, out, _ = run(capsys, "env")
    assert code == 0 and re.search(r"^lowerings +none: this torch lacks SymbolicGridFn$", out, re.MULTILINE)
    assert "torch._inductor.select_algorithm.SymbolicGridFn is missing: No lowering is registered: " in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("explain", "./no/such/folder"), 1, "there is no folder ./no/such/folder"),
        (("explain", "no.gguf"), 1, "there is no file no.gguf"),
        (("explain", "x", "--option", "sinks=3"), 2, "option 'sinks' is unknown: allowed are preset, key_bits"),
        (("explain", "x", "--option", "sink"), 2, "write it as NAME=VALUE"),
        (("explain", "x", "--device", "moon"), 2, "--device moon"),
        (("generate", "x", "--prompt", " "), 2, "the prompt is empty"),
        (("fidelity", "x", "--text", "/no/text"), 2, "--text /no/text"),
    ],
)
def test_errors_are_one_line_without_a_traceback(arguments, code, message, capsys):
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err and err.startswith("error: ") and "Traceback" not in err
    assert "Traceback" in run(capsys, *arguments, "--debug")[2]


@pytest.mark.parametrize(
    "arguments", [(), ("paint",), ("bench", "--context", "0"), ("generate", "x", "--preset", "no")]
)
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_a_missing_extra_is_named(tiny_model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = run(capsys, "explain", tiny_model)
    assert code == 1 and "this needs transformers, which is not installed: pip install 'innerq-compile[cli]'" in err
