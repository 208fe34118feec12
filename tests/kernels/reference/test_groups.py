"""The reference's quantizer against brute force, on groups of every kind of number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import layout, reference, scale_types
from innerq_compile.kernels.formats import DTYPES, CacheFormat
from innerq_compile.kernels.modes import anchored, named
from tests.helpers import brute_force
from tests.helpers.strategies import QUANTIZED_MODES, SCALE_NAMES, formats, make_format, seeds

modes = st.sampled_from(QUANTIZED_MODES)
dtypes = st.sampled_from(DTYPES)
bit_counts = st.integers(2, 8)


def group_format(mode: str, bits: int, size: int = 32, scale: str = "float16") -> CacheFormat:
    scale = scale if scale in named(mode).scale_types else "pair8"
    return make_format("key", bits, mode, size, scale_dtype=scale)


def default_scale(mode: str, dtype: torch.dtype, short: bool) -> str:
    """The scale type of a cache of ``dtype``, or the ``short`` one of the mode where it has one."""
    shorts = [name for name in ("pair8", "float8_e5m2") if name in named(mode).scale_types]
    return shorts[0] if shorts and (short or len(named(mode).scale_types) == 1) else SCALE_NAMES[dtype]


def anchor_of(x: torch.Tensor, fmt: CacheFormat) -> torch.Tensor | None:
    """Another element for each of the groups, where the mode takes one."""
    return torch.arange(len(x)) * 5 % x.shape[-1] if fmt.quantization.uses_anchor else None


def query_of(x: torch.Tensor, fmt: CacheFormat) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Another mean and weight for each element, where the mode takes them, and some that are zero."""
    if not fmt.uses_queries:
        return None
    place = torch.arange(x.numel()).view(x.shape)
    return (127 * (place * 0.7).sin()).round().int(), (255 * (place * 0.3).cos().clamp(min=0)).round().int()


def side_data_of(x: torch.Tensor, fmt: CacheFormat) -> tuple[torch.Tensor, ...] | None:
    """What the mode has to know of the elements of groups, as the reference takes it."""
    anchor = anchor_of(x, fmt)
    return query_of(x, fmt) if anchor is None else (torch.arange(x.shape[-1]) == anchor[:, None],)


def decode(x: torch.Tensor, fmt: CacheFormat, dtype=torch.float32) -> torch.Tensor:
    codes, scales, zeros = reference.quantize_groups(x, fmt, side_data_of(x, fmt))
    return reference.dequantize_groups(codes, scales, zeros, fmt, dtype)


def assert_is_brute_force(x: torch.Tensor, fmt: CacheFormat) -> None:
    """Codes, scales and zero points of groups ``[N, group_size]`` are those of the brute force, bit for bit."""
    anchor, query = anchor_of(x, fmt), query_of(x, fmt)
    codes, scales, zeros = reference.quantize_groups(x, fmt, side_data_of(x, fmt))
    assert codes.dtype == torch.int32 and scales.dtype == fmt.torch_scale_dtype
    assert codes.shape == x.shape and scales.shape == x.shape[:-1]
    wide = x if x.dtype == torch.float64 else x.float()
    scales, zeros = reference.scale_numbers(scales, zeros, fmt, torch.float32)
    for i, group in enumerate(wide.numpy()):
        place = None if anchor is None else int(anchor[i])
        asked = None if query is None else tuple(each[i].numpy() for each in query)
        expected = brute_force.quantize_group(group, fmt.mode, fmt.bits, fmt.scale_dtype, place, asked)
        where = f"{fmt.spec}, group {group.tolist()}"
        assert np.array_equal(scales[i].float().numpy(), np.float32(expected.scale), equal_nan=True), where
        if zeros is not None:
            assert np.array_equal(zeros[i].float().numpy(), np.float32(expected.zero), equal_nan=True), where
        else:
            assert expected.zero is None
        assert codes[i].tolist() == expected.stored, where


@given(modes, bit_counts, st.sampled_from([16, 32, 64, 128]), dtypes, seeds, st.integers(-12, 12), st.booleans())
def test_quantizer_is_brute_force_on_random_groups(mode, bits, size, dtype, seed, exponent, short):
    torch.manual_seed(seed)
    x = (torch.randn(6, size) * 2.0**exponent + torch.randn(6, 1) * 2.0**exponent).to(dtype)
    fmt = group_format(mode, bits, size, default_scale(mode, dtype, short))
    assert_is_brute_force(x, fmt)
    assert_is_brute_force(x.double(), fmt)


@given(modes, bit_counts, dtypes, st.booleans(), st.data())
def test_quantizer_is_brute_force_on_any_numbers(mode, bits, dtype, short, data):
    """Subnormal, huge, infinite, NaN, equal and opposite numbers, as hypothesis likes them."""
    width = {torch.float16: 16, torch.float64: 64}.get(dtype, 32)
    numbers = st.floats(width=width) | st.integers(-8, 8).map(float)
    x = torch.tensor(data.draw(st.lists(numbers, min_size=16, max_size=16)), dtype=torch.float64).to(dtype)
    assert_is_brute_force(x[None], group_format(mode, bits, 16, default_scale(mode, dtype, short)))


@given(modes.flatmap(lambda m: st.tuples(st.just(m), st.sampled_from(named(m).scale_types))), bit_counts, st.data())
def test_any_scale_dtype_decodes_to_finite_numbers(mode_and_scale, bits, data):
    """Numbers are float32, and scales have any dtype of the mode.

    The largest of float32 are left out: a float32 scale of them may round up, and then its multiple is infinite.
    """
    mode, scale = mode_and_scale
    numbers = st.floats(-(2.0**126), 2.0**126, width=32) | st.sampled_from([2.0**126, -(2.0**126), 2.0**-133])
    x = torch.tensor(data.draw(st.lists(numbers, min_size=16, max_size=16)), dtype=torch.float32)[None]
    fmt = group_format(mode, bits, 16, scale)
    assert_is_brute_force(x, fmt)
    assert bool(decode(x, fmt).isfinite().all())


@given(modes, bit_counts, dtypes, seeds)
def test_error_is_bounded_by_the_scale(mode, bits, dtype, seed):
    """Half a step within the range of the codes; a whole step at the end that signed codes leave open."""
    torch.manual_seed(seed)
    x = (torch.randn(64, 32) * 3).to(dtype).float()
    fmt = group_format(mode, bits, scale=SCALE_NAMES[dtype])
    _, scales, zeros = reference.quantize_groups(x, fmt, side_data_of(x, fmt))
    steps = 1.0 if mode in ("signed", "hybrid", "anchored") else 0.5
    eps = 2.0**-4 if fmt.is_paired else torch.finfo(fmt.torch_scale_dtype).eps
    if fmt.is_paired:  # the first zero point may be off by half a step, and the best one by half a scale
        steps = 1.0 + scale_types.zero_step(bits) / 2
    rounding = (1 << bits) * eps  # of the scale and of the zero point
    bound = reference.scale_numbers(scales, zeros, fmt, torch.float32)[0].abs() * (steps + rounding)
    bound += x.abs().amax(-1) * (0 if fmt.is_paired else eps)
    assert bool(((decode(x, fmt) - x).abs().amax(-1) <= bound).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_better_modes_have_smaller_errors(bits):
    x = torch.randn(2000, 32)
    error = {mode: float((decode(x, group_format(mode, bits)) - x).square().mean()) for mode in QUANTIZED_MODES}
    assert error["signed"] < error["symmetric"]
    assert error["hybrid"] < min(error["signed"], error["asymmetric"])


@pytest.mark.parametrize("scale", ["float16", "pair8"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_token_of_least_norm_lies_on_a_code(bits, scale):
    """Attention gives such a token much weight when no other token matches: its values have to be precise."""
    x = torch.randn(3, 64, 48) + 0.3
    x[torch.arange(3), [5, 20, 31]] *= 0.1
    fmt = make_format("value", bits, "anchored", 32, scale_dtype=scale)
    codes, scales = reference.encode_blocks(x.view(3, 2, 32, 48), fmt)
    error = (reference.decode_blocks(codes, scales, fmt, 48) - x.view(3, 2, 32, 48)).abs()
    zeros = None if fmt.is_paired else scales[..., 48:]
    number, _ = reference.scale_numbers(scales[..., :48], zeros, fmt, torch.float32)
    bound = number * (scale_types.zero_step(bits) * 0.51 if fmt.is_paired else 0.01)
    for i, token in enumerate([5, 20, 31]):
        assert bool((error[i, 0, token] <= bound[i, 0]).all())
        assert bool((error[i, 0].mean(0) > bound[i, 0]).all()), "the others are not"


def test_the_first_of_tokens_of_the_same_norm_is_the_anchor():
    """In whatever order the norms are summed up. Models that normalize their values have only such tokens."""
    x = torch.nn.functional.normalize(torch.randn(4, 32, 128), dim=-1)
    assert anchored.anchors(x, 32).tolist() == [[0]] * 4
    x[0, 3:] *= 0.5
    x[1, :, 5] = math.nan
    x[2, :31] = math.inf
    assert anchored.anchors(x, 32)[:, 0].tolist() == [3, 0, 31, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_anchored_groups_of_the_largest_numbers_stay_finite(dtype):
    x = (torch.rand(64, 32) * torch.finfo(dtype).max).to(dtype)
    fmt = group_format("anchored", 3, scale="bfloat16")
    assert_is_brute_force(x, fmt)
    assert bool(decode(x, fmt).isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", QUANTIZED_MODES)
@pytest.mark.parametrize("bits", [2, 3, 8])
class TestEdgeGroups:
    """Groups that a division or a rounding could go wrong on."""

    def check(self, numbers, mode, bits, dtype) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.as_tensor(numbers, dtype=torch.float64).to(dtype)[None]
        fmt = group_format(mode, bits, scale=SCALE_NAMES[dtype])
        assert_is_brute_force(x, fmt)
        return x[0].float(), decode(x, fmt)[0]

    def test_zeros(self, mode, bits, dtype):
        _, decoded = self.check([0.0] * 32, mode, bits, dtype)
        assert bool((decoded == 0).all())
        _, decoded = self.check([0.0, -0.0] * 16, mode, bits, dtype)
        assert bool((decoded == 0).all())

    @pytest.mark.parametrize("constant", [1.0, -1.0, 0.3, -7.25, 1000.0])
    def test_constant(self, mode, bits, dtype, constant):
        x, decoded = self.check([constant] * 32, mode, bits, dtype)
        torch.testing.assert_close(decoded, x, rtol=precision(mode, dtype), atol=0)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_one_number_among_zeros(self, mode, bits, dtype, sign):
        numbers = torch.zeros(32)
        numbers[7] = sign * 2.5
        x, decoded = self.check(numbers, mode, bits, dtype)
        torch.testing.assert_close(decoded, x, rtol=0, atol=2.5 * precision(mode, dtype))

    def test_subnormal(self, mode, bits, dtype):
        finfo = torch.finfo(dtype)
        tiny = finfo.smallest_normal * finfo.eps
        x, decoded = self.check(torch.arange(-16, 16) * tiny, mode, bits, dtype)
        assert bool(decoded.isfinite().all())
        assert bool(((decoded - x).abs() <= 2 * x.abs().amax()).all())

    def test_huge(self, mode, bits, dtype):
        largest = torch.finfo(dtype).max
        for numbers in ([largest] * 16 + [-largest] * 16, [largest] + [1.0] * 31, [-largest] * 32):
            x, decoded = self.check(numbers, mode, bits, dtype)
            assert bool(decoded.isfinite().all())
            assert float(decoded[0] * x[0].sign()) >= 0
            if mode in ("symmetric", "asymmetric") and dtype == torch.float16:
                torch.testing.assert_close(decoded[0], x[0], rtol=2e-3, atol=0)

    @pytest.mark.parametrize("signs", [(1,), (-1,), (1, -1)])
    def test_infinite(self, mode, bits, dtype, signs):
        """An infinity is a very large number of its sign; no other element becomes infinite or NaN by it."""
        numbers = torch.tensor([1.0, -2.0] * 16)
        for i, sign in enumerate(signs):
            numbers[5 * i] = sign * math.inf
        _, decoded = self.check(numbers, mode, bits, dtype)
        assert bool(decoded.isfinite().all())
        for i, sign in enumerate(signs):
            wide = mode == "paper_hybrid" or (mode in ("asymmetric", "anchored") and dtype != torch.float16)
            both_ends_do_not_fit = wide and len(signs) == 2
            assert float(decoded[5 * i]) * sign >= (0 if both_ends_do_not_fit else 1000)

    def test_nan(self, mode, bits, dtype):
        """NaN makes its own group NaN and leaves the next one alone."""
        x = torch.randn(3, 32).to(dtype)
        fmt = group_format(mode, bits, scale=SCALE_NAMES[dtype])
        clean = decode(x, fmt)
        x[1, 4] = math.nan
        decoded = decode(x, fmt)
        assert bool(decoded[1].isnan().all())
        assert torch.equal(decoded[[0, 2]], clean[[0, 2]])


SCALES = dict.fromkeys(DTYPES, torch.bfloat16) | {torch.float16: torch.float16}


def precision(mode: str, dtype: torch.dtype) -> float:
    """The relative error of a number that is stored in scale and zero point alone."""
    return 2.0**-4 if "float16" not in named(mode).scale_types else torch.finfo(SCALES[dtype]).eps


@given(st.sampled_from([16, 48, 64, 80]).flatmap(lambda d: st.tuples(formats(d), st.just(d))), seeds)
def test_blocks_decode_to_their_groups(case, seed):
    fmt, head_dim = case
    torch.manual_seed(seed)
    x = torch.randn(2, fmt.block, head_dim).half()
    codes, scales = reference.encode_blocks(x, fmt)
    assert codes.shape == (2, layout.words_per_block(fmt, head_dim))
    assert scales.shape == (2, layout.scales_per_block(fmt, head_dim)) and scales.dtype == fmt.torch_scale_dtype
    decoded = reference.decode_blocks(codes, scales, fmt, head_dim)
    expected = brute_force.quantize_block(x[0].float().numpy(), **brute_force.quantizer_of(fmt))
    assert np.array_equal(decoded[0].numpy(), expected)
