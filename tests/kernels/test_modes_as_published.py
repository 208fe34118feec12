"""The number formats of InnerQ as published, against numbers worked out by hand from the formulas."""

from __future__ import annotations

import torch

from innerq_compile import InnerQConfig
from innerq_compile.kernels import reference
from tests.helpers.strategies import make_format


def quantized(numbers, mode: str, bits: int):
    """Codes, scale and zero point of one group (the rest of it zero), in float32 throughout."""
    x = torch.zeros(1, 16)
    x[0, : len(numbers)] = torch.tensor(numbers)
    codes, scale, zero = reference.quantize_groups(x, make_format("value", bits, mode, 16, scale_dtype="float32"))
    return codes[0, : len(numbers)].tolist(), float(scale), None if zero is None else float(zero)


def test_symmetric_with_three_bits():
    # m = 3, s = 6 / 3 = 2; |x| / s = 3, 2.5, 1.5, 0.5, 0.6 round (ties to even) to 3, 2, 2, 0, 1; the sign is kept
    codes, scale, _ = quantized([6.0, -5.0, 3.0, -1.0, 1.2], "symmetric", 3)
    assert (scale, [code - 4 for code in codes]) == (2.0, [3, -2, 2, 0, 1])


def test_symmetric_with_two_bits():
    # m = 1, s = 4: three levels
    codes, scale, _ = quantized([-4.0, 2.5, 1.5, 4.0], "symmetric", 2)
    assert (scale, [code - 2 for code in codes]) == (4.0, [-1, 1, 0, 1])


def test_asymmetric_with_two_bits():
    # s = (5 - -1) / 3 = 2, x ~ 2 q - 1
    assert quantized([5.0, -1.0, 2.5, 1.2], "asymmetric", 2) == ([3, 0, 2, 1], 2.0, -1.0)


def test_hybrid_takes_what_errs_less():
    # asymmetric with one bit: s = 8, zero = 0; only the 3 errs, by 3. Symmetric with two bits: s = 8, q = 1 or 0: the
    # same numbers, the same error. A tie is asymmetric.
    assert quantized([8.0, 8.0, 3.0], "paper_hybrid", 2) == ([1, 1, 0], 8.0, 0.0)
    # asymmetric: s = 8, zero = -4: the 13 zeros err by 4 each. Symmetric: s = 4, nothing errs; zero = -2 s
    assert quantized([4.0, -4.0, 0.0], "paper_hybrid", 2) == ([3, 1, 2], 4.0, -8.0)


def test_hybrid_keeps_its_mode_in_the_zero_point():
    fmt = make_format("value", 2, "paper_hybrid", 32)
    x = torch.cat((torch.tensor([4.0, -4.0] + [0.0] * 30), torch.tensor([5.0] * 16 + [7.0] * 16))).reshape(2, 32)
    decoded = reference.dequantize_groups(*reference.quantize_groups(x, fmt), fmt)
    assert torch.equal(decoded, x)  # the first is symmetric, the second asymmetric (s = 2, zero = 5)


def test_key_normalization():
    """n = sqrt(max|K|) of each channel, without a mean."""
    keys = torch.ones(1, 1, 40, 16)
    keys[0, 0, 7, 0], keys[0, 0, 9, 1], keys[..., 2] = -9.0, 0.25, 0.0
    keys[0, 0, :, 1] *= 0.25
    start = torch.zeros(1, dtype=torch.int32)
    mean, norm = reference.key_statistics(keys, start, centre=False, normalize=True, norm="paper")
    assert not mean.any()
    assert norm[0, 0, :4].tolist() == [3.0, 0.5, 1.0, 1.0]  # a channel that is zero has no normalization


def test_presets_are_of_these_formats():
    for name in ("paper_base", "paper_small", "paper_hybrid"):
        config = InnerQConfig.preset(name)
        key, value = (config.format_for(role, 64, torch.float16) for role in ("key", "value"))
        assert (key.norm, key.mode, value.norm) == ("paper", "symmetric", "channel")
        assert (config.sink, config.recent, key.group_size, value.group_size) == (32, 96, 32, 32)
