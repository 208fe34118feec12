"""generate() on a GPU: the cases of tests/models in float16 and bfloat16, through the Triton kernels."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.generate_and_compare import Case, check_generate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32

CASES = [
    Case(preset, attn, dtype, batch, tokens, new, padding, heads, kv_heads, head_dim)
    for dtype in (F16, BF16)
    for preset, attn, batch, tokens, new, padding, heads, kv_heads, head_dim in (
        ("lossless", "sdpa", 1, 1, 8, (), 4, 2, 64),
        ("lossless", "eager", 2, 40, 130, (7, 0), 4, 2, 64),
        ("lossless", "sdpa", 2, 159, 6, (0, 30), 4, 4, 64),
        ("lossless", "sdpa", 1, 1500, 600, (), 4, 1, 128),
        ("lossless", "sdpa", 3, 200, 40, (0, 60, 5), 4, 2, 80),
        ("lossless", "eager", 1, 170, 30, (), 4, 2, 128),
        ("lossless", "sdpa", 2, 33, 10, (1, 0), 4, 1, 256),
        ("lossless", "eager", 2, 300, 20, (100, 0), 6, 2, 96),
        ("base", "sdpa", 2, 230, 70, (0, 41), 4, 2, 64),
        ("base", "eager", 1, 20, 160, (), 4, 2, 96),
        ("small", "sdpa", 2, 300, 20, (), 4, 4, 128),
        ("hybrid", "sdpa", 1, 260, 40, (), 4, 2, 80),
        ("int4", "eager", 2, 240, 20, (3, 0), 4, 2, 256),
        ("tiny", "sdpa", 4, 1200, 35, (0, 1, 2, 900), 8, 2, 128),
    )
] + [
    Case("lossless", "sdpa", F32, 2, 300, 40, (0, 60), 4, 2, 64),
    Case("base", "eager", F32, 2, 300, 40, (0, 60), 4, 2, 128),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_generate(case: Case):
    check_generate(case, "cuda")
