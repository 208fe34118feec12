"""Blocks of GGML in torch, against the gguf package."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gguf
from emulation.ggml import BLOCKS, dequantize

#: Where a block has its float16 numbers; all other bytes may be anything.
HALVES = {"Q4_1": (0, 2), "Q5_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}


@pytest.mark.parametrize("kind", sorted(HALVES))
def test_numbers_are_those_of_gguf(kind):
    elements, size = BLOCKS[kind]
    rng = np.random.default_rng()
    raw = rng.integers(0, 256, (200, size), dtype=np.uint8)
    for at in HALVES[kind]:
        raw[:, at : at + 2] = rng.normal(size=(200, 1)).astype(np.float16).view(np.uint8)
    expected = gguf.quants.dequantize(raw.reshape(-1), gguf.GGMLQuantizationType[kind]).reshape(200, elements)
    assert torch.equal(dequantize(kind, torch.from_numpy(raw)), torch.from_numpy(expected))


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match="Q2_K is not supported: allowed are F32"):
        dequantize("Q2_K", torch.zeros(1, 84, dtype=torch.uint8))
