"""The Triton kernels of the key statistics against the reference, in the interpreter (or on the GPU)."""

from __future__ import annotations

import math

import pytest
import torch

from innerq_compile.kernels import reference
from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.formats import CacheFormat

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: dtype, tokens in one part and in two, how the normalization is taken
CASES = [(torch.float16, 600, norm) for norm in ("channel", "half64", "half32@16", "interleaved16", "paper")]
CASES += [(torch.bfloat16, 33, "interleaved64"), (torch.float32, 33, "channel")]


def check(keys, start, centre, normalize, norm, divisor=None):
    assert kernels.supports_key_statistics(keys)
    actual = kernels.key_statistics(keys, start, centre=centre, normalize=normalize, norm=norm, divisor=divisor)
    expected = reference.key_statistics(keys, start, centre=centre, normalize=normalize, norm=norm, divisor=divisor)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        # the sum is taken in another order; where the keys of a channel nearly cancel, so does what is left of it
        largest = float(keys.float().nan_to_num(0, 0, 0).abs().amax().clamp(max=1e30)) if keys.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6 * largest)
    again = kernels.key_statistics(keys, start, centre=centre, normalize=normalize, norm=norm, divisor=divisor)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


@pytest.mark.parametrize(("dtype", "tokens", "norm"), CASES)
def test_statistics_are_the_reference(dtype, tokens, norm):
    """Over padding, odd strides, keys that are no numbers, and a sequence too short for statistics."""
    keys = (torch.randn(3, tokens, 2, 80) * 3 + torch.randn(1, 1, 2, 80) * 20).to(dtype).to(DEVICE).transpose(1, 2)
    keys[0, 0, 20, 3], keys[0, 1, -1, 4], keys[1, 1, -1, 2] = math.inf, -math.inf, math.nan
    keys[1, 0, :, 7] = math.nan
    keys[2, 1, :, 5] = 0.0
    keys[1, :, :9] = 500.0  # padding, which does not count
    start = torch.tensor([0, 9, tokens - 31], dtype=torch.int32, device=DEVICE)
    check(keys, start, True, True, norm)
    check(keys, start, True, True, norm, torch.rand(3, 2, 80, device=DEVICE) + 0.1)


@pytest.mark.parametrize(("centre", "normalize"), [(False, True), (True, False), (False, False)])
def test_what_is_not_asked_for(centre, normalize):
    check(
        torch.randn(1, 1, 70, 16, device=DEVICE),
        torch.zeros(1, dtype=torch.int32, device=DEVICE),
        centre,
        normalize,
        "channel",
    )


def test_large_keys_have_a_finite_mean():
    keys = torch.full((1, 1, 600, 16), 3e38, device=DEVICE)
    mean, norm = kernels.key_statistics(
        keys, torch.zeros(1, dtype=torch.int32, device=DEVICE), centre=True, normalize=True
    )
    torch.testing.assert_close(mean, keys[:, :, 0])
    assert bool(norm.isfinite().all())


def test_channels_of_a_pair_share_their_normalization():
    keys = torch.randn(1, 2, 64, 32, device=DEVICE) * torch.rand(32, device=DEVICE)
    start = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    _, norm = kernels.key_statistics(keys, start, centre=True, normalize=True, norm="interleaved16@8")
    assert torch.equal(norm[..., 8:24:2], norm[..., 9:24:2])
    assert not torch.equal(norm[..., 0:8:2], norm[..., 1:8:2])
    assert CacheFormat.parse("key:3:signed:32:32:96:float16:interleaved16@8").norm == "interleaved16@8"
