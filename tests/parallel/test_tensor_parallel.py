"""A model that transformers shards by ``tp_plan="auto"``, on CPU processes with gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

RANKS, LAYERS, PROMPT, NEW = 2, 2, 200, 8
HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "tensor_parallel.py"


def saved(folder: Path, kv_heads: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=32,
        vocab_size=256,
        initializer_range=0.1,  # tokens that differ from step to step
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def torchrun(script: Path, *arguments: object, ranks: int = RANKS) -> str:
    """What a script prints on ``ranks`` processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, str(HERE / "cheaply.py"), str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    saved(folder / "divides", RANKS)
    saved(folder / "uneven", 1)
    torchrun(HERE / "worker.py", folder, folder)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("preset", ["lossless", "base"])
def test_every_rank_decodes_as_one_device_does(ranks, preset):
    for found in (rank[preset] for rank in ranks):
        assert found["tokens"] == found["expected"] and len(set(found["tokens"])) > 2
        assert found["error"] < 1e-4  # the order of the sums of an all-reduce
        if preset == "base":
            assert 1e-3 < found["from_eager"] < 1  # quantized


@pytest.mark.parametrize("preset", ["lossless", "base"])
def test_every_rank_rewrites_all_layers_and_holds_its_heads(ranks, preset):
    for found in (rank[preset] for rank in ranks):
        assert [graph[:2] for graph in found["graphs"]] == [["prefill", LAYERS], ["decode", LAYERS]]
        assert found["caches"] == [["InnerQTensor", [1, 1, PROMPT + NEW - 1, 32]]] * LAYERS
    if preset == "base":
        assert all(rank[preset]["graphs"] == rank[preset]["graphs_whole"] for rank in ranks)
        assert all(rank[preset]["bytes"] * RANKS == rank[preset]["bytes_whole"] for rank in ranks)


def test_heads_that_do_not_divide_are_an_error_as_in_transformers(ranks):
    for rank in ranks:
        assert all("is invalid for input of size" in rank[side] for side in ("eager", "innerq"))


def test_example(tiny_model):
    out = torchrun(EXAMPLE, "--model", tiny_model, "--prompt", "hello world", "--tokens", "4")
    lines = [line for line in out.splitlines() if line.startswith("rank ")]
    assert len(lines) == RANKS and all("1 KV heads, cache InnerQTensor" in line for line in lines)
    assert len({line.partition(": ")[2] for line in lines}) == 1  # the ranks agree
