"""transformers' generate() with its default cache, on every case that the README names."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.generate_and_compare import Case, check_generate

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


CASES = [
    # windows: prompts of one token, shorter than the windows; growth past the first capacity
    Case("lossless", "sdpa", F32, 1, 1, 8),
    Case("base", "sdpa", F32, 2, 230, 70, padding=(0, 41)),
]
MORE_CASES = [
    Case("lossless", "eager", F32, 2, 40, 130, padding=(7, 0)),
    Case("small", "sdpa", BF16, 2, 300, 20, head_dim=80, kv_heads=4),
    Case("tiny", "sdpa", F32, 1, 300, 35),
    Case("lossless", "sdpa", F32, 2, 159, 6, padding=(0, 30), kv_heads=4),
    Case("lossless", "sdpa", F32, 1, 150, 300, head_dim=16),
    Case("lossless", "sdpa", BF16, 3, 200, 40, padding=(0, 60, 5), head_dim=80),
    Case("lossless", "eager", F16, 1, 170, 30, head_dim=128),
    Case("lossless", "sdpa", F16, 2, 33, 10, padding=(1, 0), head_dim=256, kv_heads=1),
    Case("base", "eager", F32, 1, 20, 160, head_dim=96),
    Case("int4", "eager", F16, 2, 240, 20, padding=(3, 0), head_dim=256),
]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)], ids=str
)
def test_generate(case: Case):
    check_generate(case, "cpu")
