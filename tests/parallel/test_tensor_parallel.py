"""A model that transformers shards by ``tp_plan="auto"``, on CPU processes with gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RANKS, LAYERS, PROMPT, NEW = 2, 2, 200, 8
WORKER = Path(__file__).with_name("worker.py")


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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    saved(folder / "divides", RANKS)
    saved(folder / "uneven", 1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(WORKER), str(folder), str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
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
