"""Formats that the tests of Triton's cache kernels go through, and random tensors for them."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.strategies import make_format

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def normal(*shape, dtype=F16, spread: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * spread).to(dtype).to(DEVICE)


def heads_for(tokens: int) -> int:
    """Two heads, and one where there are many tokens: the interpreter runs one program after the other."""
    return 2 if tokens < 40 else 1


FORMATS = [  # head_dim, dtype, format; every mode, every bit width, both roles, awkward widths
    pytest.param(head_dim, dtype, make_format(role, bits, mode, group, sink, recent, dtype, scale), id=name)
    for name, role, bits, mode, group, sink, recent, head_dim, dtype, scale in [
        ("key-sym3-D64", "key", 3, "symmetric", 32, 4, 20, 64, F16, None),
        ("key-sig2-D128", "key", 2, "signed", 32, 1, 33, 128, F16, None),
        ("key-asym5-D80", "key", 5, "asymmetric", 16, 0, 7, 80, BF16, None),
        ("key-hyb4-D96", "key", 4, "hybrid", 32, 3, 0, 96, F32, None),
        ("key-sig6-D256", "key", 6, "signed", 128, 5, 31, 256, F16, "float32"),
        ("key-sig7-D48", "key", 7, "signed", 16, 4, 20, 48, F32, "float16"),
        ("key-asym8-D16", "key", 8, "asymmetric", 16, 4, 20, 16, F32, "float32"),
        ("key-pair3-D64", "key", 3, "hybrid", 32, 4, 20, 64, BF16, "pair8"),
        ("key-steered3-D64", "key", 3, "steered", 32, 4, 20, 64, F16, "pair8"),
        ("key-steered2-g16-D48", "key", 2, "steered", 16, 0, 7, 48, BF16, "pair8"),
        ("key-steered4-D128", "key", 4, "steered", 32, 4, 20, 128, BF16, "pair8"),
        ("key-steered5-g64-D192", "key", 5, "steered", 64, 0, 7, 192, F32, "pair8"),
        ("key-steered3-g128-D128", "key", 3, "steered", 128, 4, 20, 128, F16, "pair8"),
        ("key-steered3-D320", "key", 3, "steered", 32, 4, 20, 320, F16, "pair8"),
        ("key-steered2-g16-D464", "key", 2, "steered", 16, 4, 20, 464, BF16, "pair8"),
        ("key-hyb3-D512", "key", 3, "hybrid", 32, 4, 20, 512, F16, "pair8"),
        ("key-asym5-D576", "key", 5, "asymmetric", 64, 4, 20, 576, F32, None),
        ("key-none-D464", "key", 3, "none", 16, 4, 20, 464, F16, None),
        ("key-none-D80", "key", 3, "none", 16, 4, 20, 80, BF16, None),
        ("value-sym4-D64", "value", 4, "symmetric", 32, 4, 20, 64, BF16, None),
        ("value-sig3-D80", "value", 3, "signed", 16, 0, 40, 80, F16, None),
        ("value-asym2-D128", "value", 2, "asymmetric", 64, 4, 20, 128, F16, None),
        ("value-hyb5-D48", "value", 5, "hybrid", 32, 2, 0, 48, F16, None),
        ("value-paper2-D64", "value", 2, "paper_hybrid", 32, 2, 20, 64, BF16, None),
        ("value-hyb2-g128-D32", "value", 2, "hybrid", 128, 4, 20, 32, F32, None),
        ("value-sig6-D96", "value", 6, "signed", 32, 4, 20, 96, F32, "float32"),
        ("value-sig7-D16", "value", 7, "signed", 32, 4, 20, 16, F16, None),
        ("value-asym8-D256", "value", 8, "asymmetric", 32, 4, 20, 256, F16, None),
        ("value-pair3-D64", "value", 3, "hybrid", 32, 4, 20, 64, F16, "pair8"),
        ("value-anchored3-D64", "value", 3, "anchored", 32, 4, 20, 64, F16, "pair8"),
        ("value-anchored2-g16-D80", "value", 2, "anchored", 16, 4, 20, 80, BF16, "pair8"),
        ("value-anchored4-g64-D48", "value", 4, "anchored", 64, 4, 20, 48, F32, "float16"),
        ("value-anchored3-D464", "value", 3, "anchored", 32, 4, 20, 464, F16, "pair8"),
        ("value-anchored3-D512", "value", 3, "anchored", 32, 4, 20, 512, BF16, "pair8"),
        ("value-sig6-D576", "value", 6, "signed", 32, 4, 20, 576, F32, None),
        ("value-none-D80", "value", 3, "none", 64, 4, 20, 80, F32, None),
        ("key-rolling-D80", "key", 3, "rolling", 16, 0, 143, 80, BF16, None),
        ("key-rolling-D576", "key", 3, "rolling", 16, 0, 111, 576, F16, None),
        ("value-rolling-D64", "value", 3, "rolling", 64, 0, 111, 64, F16, None),
    ]
]
