"""The choice of zero points in the emulation (`benchmarks/emulation/zero_points.py`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from emulation.zero_points import anchored, decoded, spanned, steered

from innerq_compile.kernels import scale_types


def levels(x, bits, shift):
    """All numbers that groups ``x`` can be decoded to, through the words of a cache, ``[..., 2^bits]``."""
    scale, zero = spanned(x, bits)
    steps = torch.round((zero + shift * scale) / scale / scale_types.zero_step(bits)).clamp(-127, 127)
    words = scale_types.to_pair(scale, steps)
    scale, zero = scale_types.from_pair(words, bits, torch.float32)
    return torch.arange(2**bits) * scale + zero


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_alignment_fits_a_word(bits):
    x = torch.randn(50, 32) * torch.logspace(-3, 3, 50)[:, None] + torch.randn(50, 1)
    for shift in (-0.5, -0.25, 0.0, 0.25):
        scale, zero = spanned(x, bits)
        nearest = (x[..., None] - levels(x, bits, shift)[:, None]).abs().amin(-1)
        error = (decoded(x, scale, zero + shift * scale, bits) - x).abs()
        torch.testing.assert_close(error, nearest, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_token_of_least_norm_is_nearly_exact(bits):
    x = torch.randn(3, 16, 32) + 0.5  # [blocks, channels, tokens]
    x[:, :, 7] *= 0.1
    scale, _ = spanned(x, bits)
    error = (anchored(x, bits) - x).abs()
    assert (error[:, :, 7] <= scale[..., 0] * scale_types.zero_step(bits) * 0.5001).all()
    # half a scale for the shift of the zero point, half a scale for rounding and for the range of the codes
    assert (error.amax(-1) <= 1.2 * scale[..., 0]).all()


def test_groups_of_zeros_stay():
    x = torch.zeros(2, 4, 32)
    assert (anchored(x, 3) == 0).all()
    assert (steered(x, 3, torch.ones(4, 32), torch.ones(4, 32), 8) == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_cheapest_alignment_is_taken(bits):
    x, query, spread = torch.randn(6, 5, 2, 32), torch.randn(2, 32), torch.rand(2, 32)
    tried = 2 ** (6 - bits)

    def cost(y):
        error = (y - x).double()
        return (query * error).sum(-1) ** 2 + (spread * error**2).sum(-1)

    scale, zero = spanned(x, bits)
    shifts = [i / tried - (i > tried // 2) for i in range(tried)]
    least = torch.stack([cost(decoded(x, scale, zero + s * scale, bits)) for s in shifts]).amin(0)
    found = cost(steered(x, bits, query, spread, tried))
    torch.testing.assert_close(found, least, rtol=1e-4, atol=1e-6)
    assert found.mean() < 0.6 * cost(decoded(x, scale, zero, bits)).mean()
