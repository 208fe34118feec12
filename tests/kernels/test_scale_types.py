"""Scales of a few bits: the bits of a byte and of a word, rounding, and groups that they saturate on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import reference, scale_types
from tests.helpers import brute_force
from tests.helpers.strategies import make_format, seeds

NAMES = st.sampled_from(["float8_e5m2", "pair8"])


@given(
    NAMES,
    st.sampled_from([3, 4, 5, 8]),
    st.floats(-70000, 70000, width=32) | st.floats(-(2.0**-12), 2.0**-12, width=32),
)
def test_scales_are_rounded_to_the_numbers_of_their_dtype(name, bits, scale):
    rounded = scale_types.round_scale(torch.tensor([scale]), scale_types.SCALE_TYPES[name], bits)
    largest = scale_types.SCALE_TYPES[name].largest
    assert rounded.item() == brute_force.round_short(scale, name, bits, largest)
    again = scale_types.round_scale(rounded, scale_types.SCALE_TYPES[name], bits)
    assert torch.equal(again, rounded)
    if name == "float8_e5m2":
        assert torch.equal(scale_types.from_bytes(scale_types.to_bytes(rounded), torch.float32), rounded)
        if bits <= 4 and abs(scale) <= largest:
            assert torch.equal(rounded, torch.tensor([scale]).to(torch.float8_e5m2).float())


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_word_of_a_pair(bits):
    """Two masks of a word are float16 numbers, and what is read from it is written to it again."""
    words = torch.arange(-(2**15), 2**15).to(torch.int16)
    words = words[(words & 0x7C00) != 0x7C00]  # no infinite or NaN scales
    scale, zero = scale_types.from_pair(words, bits, torch.float64)
    half = words.numpy().view(np.uint16)
    assert np.array_equal(scale.numpy(), (half & np.uint16(0x7F80)).view(np.float16).astype(np.float64))
    steps = (half & np.uint16(0x807F)).view(np.float16).astype(np.float64) * 2.0**24
    assert np.array_equal(zero.numpy(), steps * 2.0 ** (bits - 6) * scale.numpy())
    single = scale_types.from_pair(words, bits, torch.float32)
    assert torch.equal(single[0].double(), scale) and torch.equal(single[1].double(), zero)
    top = (1 << bits) - 1
    assert torch.equal((top * single[0] + single[1]).double(), top * scale + zero)  # decoding rounds nothing
    canonical = ((words & 0x7F) != 0) | (words >= 0)  # zero has one sign
    again = scale_types.to_pair(scale.float(), torch.from_numpy(steps).float())
    assert torch.equal(again[canonical], words[canonical])


def group(numbers, mode="hybrid", bits=3):
    fmt = make_format("key", bits, mode, len(numbers), scale_dtype="pair8")
    x = torch.tensor([numbers], dtype=torch.float32)
    codes, words, zeros = reference.quantize_groups(x, fmt)
    assert zeros is None and words.dtype == torch.int16
    return words[0].item(), codes[0], reference.dequantize_groups(codes, words, None, fmt)[0]


def test_words_of_known_groups():
    word, codes, decoded = group([0.0] * 16)
    assert word == 0 and not codes.any() and not decoded.any()
    # max 4 of 3 bits: scale 1, levels -3 .. 4
    word, _, decoded = group([4.0, -3.0, 1.0, 0.0] * 4)
    assert word & 0xFFFF == 0x3C00 | 0x8000 | 24 and decoded.tolist() == [4.0, -3.0, 1.0, 0.0] * 4
    word, _, decoded = group([-4.0, 3.0, 1.0, 0.0] * 4)
    assert word & 0xFFFF == 0x3C00 | 0x8000 | 32 and decoded.tolist() == [-4.0, 3.0, 1.0, 0.0] * 4
    word, codes, decoded = group([2.0, 9.0, 3.0, 5.0] * 4, "asymmetric")
    assert word == 0x3C00 | 16 and codes[:4].tolist() == [0, 7, 1, 3] and decoded.tolist() == [2.0, 9.0, 3.0, 5.0] * 4
    word, _, decoded = group([1.0, math.nan] * 8)
    assert word == 0x7F80 and decoded.isnan().all()


@given(st.integers(2, 8), st.sampled_from(["asymmetric", "hybrid"]), seeds, st.floats(-1000, 1000), st.integers(-8, 3))
def test_a_group_far_from_zero_is_not_cut_off(bits, mode, seed, middle, exponent):
    """The scale grows until the zero point reaches the group: no element is off by more than a step or two."""
    torch.manual_seed(seed)
    x = middle + torch.randn(4, 32) * 2.0**exponent
    fmt = make_format("key", bits, mode, scale_dtype="pair8")
    codes, words, _ = reference.quantize_groups(x, fmt)
    scale = scale_types.from_pair(words, bits, torch.float32)[0]
    # half a step, half a step of the zero point, and what a scale rounded down leaves out at the end
    cut = (1 << bits) / 16 if bits <= scale_types.NEAREST_BITS else 0
    bound = (1.0 + scale_types.zero_step(bits) + cut) * scale[:, None]
    assert bool(((reference.dequantize_groups(codes, words, None, fmt) - x).abs() <= bound + 1e-4 * x.abs()).all())


@pytest.mark.parametrize("mode", ["asymmetric", "hybrid"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers_beyond_float16_saturate(mode, bits):
    x = torch.tensor([[1e30] + [1.0] * 15, [-1e38] * 16, [3e38, -3e38] * 8, [math.inf, -math.inf] + [2.0] * 14])
    fmt = make_format("key", bits, mode, 16, scale_dtype="pair8")
    codes, words, _ = reference.quantize_groups(x, fmt)
    decoded = reference.dequantize_groups(codes, words, None, fmt)
    assert bool(decoded.isfinite().all())
    assert bool((words & 0x7F80 == 0x7B80).all())
    assert decoded[0, 0] >= 61440 and decoded[1, 0] <= -61440 and decoded[2, 0] > decoded[2, 1]


@pytest.mark.parametrize("name", ["float8_e5m2", "pair8"])
def test_short_scales_cost_little(name):
    """Compared with scales of 16 bits they take no more bytes, and the error grows little."""
    x = torch.randn(4000, 32) + 0.3 * torch.randn(4000, 1)
    for bits in (2, 3, 4, 8):
        errors = []
        for scale_dtype in ("float16", name):
            fmt = make_format("key", bits, "hybrid" if name == "pair8" else "signed", scale_dtype=scale_dtype)
            errors.append((reference.dequantize_groups(*reference.quantize_groups(x, fmt), fmt) - x).square().mean())
        assert errors[1] < (1.1 if bits < 8 else 1.4) * errors[0]
