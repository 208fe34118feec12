"""The reference against brute force: the quantizer, key statistics, the cache's storage, attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerq_compile.kernels import layout, reference, scale_types
from innerq_compile.kernels.formats import CacheFormat, blocks_for
from innerq_compile.kernels.modes import anchored, named, names_of
from tests.helpers import brute_force
from tests.helpers.strategies import DTYPES, QUANTIZED_MODES, SCALE_NAMES, assert_same_bits, formats, make_format, seeds

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
    return torch.arange(len(x)) * 5 % x.shape[-1] if fmt.mode == "anchored" else None


def query_of(x: torch.Tensor, fmt: CacheFormat) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Another mean and weight for each element, where the mode takes them, and some that are zero."""
    if fmt.mode != "steered":
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


# --- the quantizer ----------------------------------------------------------------------------------------------


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
    width = {torch.float16: 16, torch.bfloat16: 32, torch.float32: 32}[dtype]
    numbers = st.floats(width=width) | st.integers(-8, 8).map(float)
    x = torch.tensor(data.draw(st.lists(numbers, min_size=16, max_size=16)), dtype=torch.float32).to(dtype)
    assert_is_brute_force(x[None], group_format(mode, bits, 16, default_scale(mode, dtype, short)))


@given(modes.flatmap(lambda m: st.tuples(st.just(m), st.sampled_from(named(m).scale_types))), bit_counts, st.data())
def test_any_scale_dtype_decodes_to_finite_numbers(mode_and_scale, bits, data):
    """Of numbers of float32, whichever dtype the scales are asked to have.

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
    """What attention rests on where it has nothing to look for: a tenth of the others' norm, a third of the weight."""
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
    """However they are summed up: a model that normalizes its values has no others."""
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
        x = torch.as_tensor(numbers, dtype=torch.float32).to(dtype)[None]
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


SCALES = {torch.float16: torch.float16, torch.bfloat16: torch.bfloat16, torch.float32: torch.bfloat16}


def precision(mode: str, dtype: torch.dtype) -> float:
    """Of one number that scale and zero point have to hold alone."""
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
    expected = brute_force.quantize_block(x[0].float().numpy(), **quantizer(fmt))
    assert np.array_equal(decoded[0].numpy(), expected)


# --- key statistics ---------------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.lists(st.integers(0, 40), min_size=2, max_size=2), st.booleans(), st.booleans(), seeds)
def test_key_statistics(tokens, start, centre, normalize, seed):
    torch.manual_seed(seed)
    start = [min(s, tokens - 1) for s in start]
    keys = torch.randn(2, 2, tokens, 16) * 4 + torch.randn(2, 2, 1, 16) * 8
    keys[0, 0, -1, 3], keys[1, 1, -1, 2] = math.inf, math.nan
    mean, norm = reference.key_statistics(
        keys, torch.tensor(start, dtype=torch.int32), centre=centre, normalize=normalize
    )
    assert mean.shape == norm.shape == (2, 2, 16) and mean.dtype == norm.dtype == torch.float32
    for b in range(2):
        for h in range(2):
            wanted_mean, wanted_norm = np.zeros(16), np.ones(16)
            if tokens - start[b] >= 32:
                real = keys[b, h, start[b] :].double().numpy()
                columns = [real[np.isfinite(real[:, c]), c] for c in range(16)]
                if centre:
                    wanted_mean = np.array([column.mean() for column in columns])
                if normalize:
                    reach = np.array([np.abs(columns[c] - wanted_mean[c]).max() for c in range(16)])
                    wanted_norm = np.maximum(np.sqrt(reach / reach.max()), 2.0**-6)
            np.testing.assert_allclose(mean[b, h].numpy(), wanted_mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(norm[b, h].numpy(), wanted_norm, rtol=1e-4)


def test_a_channel_that_queries_make_much_of_is_divided_by_less():
    """By the fourth root of their root mean square, which channels of a pair share; all relative to the largest."""
    keys = torch.randn(1, 1, 64, 8)
    start = torch.zeros(1, dtype=torch.int32)
    query = torch.rand(1, 1, 2, 8) + 0.1
    query[..., 5] = 0.0
    for norm, pairs in (
        ("channel", range(8)),
        ("half8", [4, 5, 6, 7, 0, 1, 2, 3]),
        ("interleaved4@2", [0, 1, 3, 2, 5, 4, 6, 7]),
    ):
        _, plain = reference.key_statistics(keys, start, centre=True, normalize=True, norm=norm)
        _, found = reference.key_statistics(
            keys, start, centre=True, normalize=True, norm=norm, weight=reference.query_weight(query, norm)
        )
        square = [float(query[0, 0, 0, c] ** 2 + query[0, 0, 1, c] ** 2) for c in range(8)]
        shared = [(square[c] + square[pairs[c]]) / 2 for c in range(8)]
        size = [max(s / max(shared), 2.0**-24) ** 0.125 for s in shared]
        wanted = plain[0, 0] / torch.tensor(size)
        torch.testing.assert_close(found[0, 0], wanted / wanted.max(), rtol=1e-5, atol=1e-6)
    assert torch.equal(reference.query_weight(torch.zeros(1, 1, 2, 8), "channel"), torch.ones(1, 1, 8))


def test_key_statistics_of_a_dead_head():
    mean, norm = reference.key_statistics(
        torch.zeros(1, 1, 40, 16), torch.zeros(1, dtype=torch.int32), centre=True, normalize=True
    )
    assert bool((mean == 0).all()) and bool(norm.isfinite().all()) and bool((norm > 0).all())


def test_normalized_keys_do_not_overflow():
    keys = torch.randn(1, 2, 64, 32).half()
    keys[..., 3] *= 2.0**-14
    keys[..., 5] = 60000.0
    mean, norm = reference.key_statistics(keys, torch.zeros(1, dtype=torch.int32), centre=False, normalize=True)
    assert bool(reference.normalize_keys(keys, mean, norm).isfinite().all())
    assert float(norm.max()) == 1.0 and float(norm.min()) >= 2.0**-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_of_normalized_keys_differ_by_a_constant(dtype):
    """``(q * norm) . ((k - mean) / norm)`` is ``q . k`` less the same number for every token."""
    keys = torch.randn(1, 1, 50, 32).to(dtype)
    mean, norm = reference.key_statistics(keys, torch.zeros(1, dtype=torch.int32), centre=True, normalize=True)
    query = torch.randn(32).double()
    inner = reference.normalize_keys(keys.double(), mean, norm)[0, 0]
    difference = keys[0, 0].double() @ query - inner @ (query * norm[0, 0].double())
    assert float(difference.max() - difference.min()) < 1e-10
    assert reference.normalize_keys(keys, mean, norm).dtype == dtype


# --- the storage of a cache -------------------------------------------------------------------------------------


def quantizer(fmt: CacheFormat) -> dict:
    return {
        "key": fmt.is_key,
        "mode": fmt.mode,
        "bits": fmt.bits,
        "group_size": fmt.group_size,
        "scale_dtype": fmt.scale_dtype,
    }


def model_of(fmt: CacheFormat, dtype: torch.dtype) -> brute_force.Sequence:
    def window_round(token):
        return torch.from_numpy(np.asarray(token)).to(dtype).float().numpy()

    return brute_force.Sequence(fmt.sink, fmt.recent, fmt.block, quantizer(fmt), window_round)


def assert_holds(cache, models, fmt: CacheFormat) -> None:
    """The cache holds exactly the tokens of ``models[b][h]``, each where it should be."""
    state = cache[3]
    longest = int(state[..., layout.LENGTH].max())
    held = reference.real_tokens(*cache, longest, fmt)
    blocks = reference.quantized_blocks(state, fmt)
    for b, row in enumerate(models):
        for h, model in enumerate(row):
            count = len(model.tokens)
            assert int(state[b, h, layout.LENGTH]) == count
            assert fmt.sink + int(blocks[b, h]) * fmt.block == model.boundary
            if count:
                np.testing.assert_array_equal(held[b, h, :count].numpy(), np.stack(model.tokens))
            assert bool((held[b, h, count:] == 0).all())


@st.composite
def histories(draw):
    """A small format, a left-padded prompt and what is done to its cache afterwards."""
    role = draw(st.sampled_from(["key", "value"]))
    dtype = draw(dtypes)
    fmt = make_format(
        role,
        draw(bit_counts),
        draw(st.sampled_from(names_of(role))),
        draw(st.sampled_from([16] if role == "key" else [16, 32, 64])),
        draw(st.sampled_from([0, 3, 8])),
        draw(st.sampled_from([0, 1, 7, 33])),
        dtype,
    )
    tokens = draw(st.integers(1, 120))
    start = draw(st.lists(st.integers(0, tokens - 1), min_size=2, max_size=2))
    steps = draw(
        st.lists(
            st.tuples(st.just("append"), st.integers(1, 70)) | st.tuples(st.just("truncate"), st.integers(0, 200)),
            max_size=4,
        )
    )
    return fmt, dtype, tokens, start, steps


@given(histories(), seeds)
@settings(max_examples=60)
def test_cache_holds_what_its_model_holds(history, seed):
    """Prefill, then any appends and truncations, against a list of tokens and the brute-force quantizer."""
    fmt, dtype, tokens, start, steps = history
    torch.manual_seed(seed)
    x = torch.randn(2, 1, tokens, 16).to(dtype)
    starts = torch.tensor(start, dtype=torch.int32)
    total = tokens + sum(amount for name, amount in steps if name == "append")
    cache = reference.prefill(x, starts, None, None, blocks_for(fmt, total), fmt)
    models = [[model_of(fmt, dtype)] for _ in range(2)]
    for b in range(2):
        for token in x[b, 0, start[b] :].float().numpy():
            models[b][0].append(token)
    assert_holds(cache, models, fmt)
    for name, amount in steps:
        if name == "append":
            new = torch.randn(2, 1, amount, 16).to(dtype)
            reference.append_(*cache, new, fmt)
            for b in range(2):
                for token in new[b, 0].float().numpy():
                    models[b][0].append(token)
        else:
            reference.truncate_(*cache, amount, fmt)
            for b in range(2):
                models[b][0].truncate(amount - start[b])
        assert_holds(cache, models, fmt)


@st.composite
def prompts(draw):
    head_dim = draw(st.sampled_from([16, 32, 80]))
    dtype = draw(dtypes)
    fmt = draw(formats(head_dim, max_window=40, dtype=dtype))
    tokens = draw(st.integers(1, 250))
    return fmt, head_dim, dtype, tokens, draw(st.integers(1, tokens))


@given(prompts(), st.booleans(), seeds)
def test_append_continues_prefill_bit_for_bit(prompt, padded, seed):
    """``prefill(x[:S])`` and ``append_`` of the rest leave what ``prefill(x)`` leaves."""
    fmt, head_dim, dtype, tokens, first = prompt
    torch.manual_seed(seed)
    x = torch.randn(2, 2, tokens, head_dim).to(dtype)
    start = torch.tensor([0, first // 2 if padded else 0], dtype=torch.int32)
    mean, norm = (torch.randn(2, 2, head_dim), torch.rand(2, 2, head_dim) + 0.1) if fmt.is_key else (None, None)
    query = torch.rand(2, 2, 2, head_dim) - torch.tensor([[0.5], [0.0]]) if fmt.is_key else None
    capacity = blocks_for(fmt, tokens) + 1
    whole = reference.prefill(x, start, mean, norm, capacity, fmt, query)
    cache = reference.prefill(x[:, :, :first], start, mean, norm, capacity, fmt, query)
    for chunk in x[:, :, first:].split(23, dim=2):
        reference.append_(*cache, reference.normalize_keys(chunk, mean, norm), fmt)
    assert torch.equal(cache[3], whole[3])
    for b in range(2):
        blocks = int(reference.quantized_blocks(whole[3], fmt)[b, 0])
        assert_same_bits(cache[0][b, :, :blocks], whole[0][b, :, :blocks])
        assert_same_bits(cache[1][b, :, :blocks], whole[1][b, :, :blocks])
    assert_same_bits(
        reference.dequantize(*cache, mean, norm, tokens, fmt), reference.dequantize(*whole, mean, norm, tokens, fmt)
    )


@given(prompts(), seeds)
def test_truncate_leaves_the_prefix(prompt, seed):
    fmt, head_dim, dtype, tokens, kept = prompt
    torch.manual_seed(seed)
    x = torch.randn(1, 1, tokens, head_dim).to(dtype)
    start = torch.zeros(1, dtype=torch.int32)
    cache = reference.prefill(x, start, None, None, blocks_for(fmt, tokens), fmt)
    before = reference.dequantize(*cache, None, None, tokens, fmt)
    reference.truncate_(*cache, kept, fmt)
    # a cut block is read once, rounded as the cache's own dtype would be, and is the same afterwards
    assert_same_bits(reference.dequantize(*cache, None, None, kept, fmt), before[:, :, :kept])
    reference.truncate_(*cache, kept, fmt)
    assert_same_bits(reference.dequantize(*cache, None, None, kept, fmt), before[:, :, :kept])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lossless_cache_is_the_tensor(dtype):
    x = torch.randn(2, 2, 150, 32).to(dtype)
    for role in ("key", "value"):
        fmt = make_format(role, mode="none", sink=8, recent=16, dtype=dtype)
        cache = reference.prefill(x[:, :, :70], torch.zeros(2, dtype=torch.int32), None, None, 4, fmt)
        reference.append_(*cache, x[:, :, 70:], fmt)
        assert_same_bits(reference.dequantize(*cache, None, None, 150, fmt), x)


@given(st.integers(1, 90), st.lists(st.integers(0, 89), min_size=3, max_size=3), seeds)
def test_left_padding_is_forgotten(tokens, start, seed):
    """Whatever stands in the padding, NaN included, the cache is that of the sequence alone; padding reads as zero."""
    start = [min(s, tokens - 1) for s in start]
    torch.manual_seed(seed)
    fmt = make_format("value", group_size=16, sink=4, recent=8)
    x = torch.randn(3, 1, tokens, 16).half()
    for b in range(3):
        x[b, :, : start[b]] = math.nan
    starts = torch.tensor(start, dtype=torch.int32)
    cache = reference.prefill(x, starts, None, None, blocks_for(fmt, tokens), fmt)
    dense = reference.dequantize(*cache, None, None, tokens, fmt)
    for b in range(3):
        alone = x[b : b + 1, :, start[b] :]
        zero = torch.zeros(1, dtype=torch.int32)
        single = reference.prefill(alone, zero, None, None, blocks_for(fmt, tokens), fmt)
        expected = reference.dequantize(*single, None, None, tokens - start[b], fmt)
        assert_same_bits(dense[b : b + 1, :, start[b] :], expected)
        assert bool((dense[b, :, : start[b]] == 0).all())


def test_key_statistics_are_undone():
    fmt = make_format(mode="none", sink=4, recent=8, dtype=torch.float32)
    x = torch.randn(1, 2, 80, 32) + 5
    start = torch.zeros(1, dtype=torch.int32)
    mean, norm = reference.key_statistics(x, start, centre=True, normalize=True)
    cache = reference.prefill(x, start, mean, norm, 3, fmt)
    assert not torch.allclose(reference.dequantize(*cache, None, None, 80, fmt), x)
    torch.testing.assert_close(reference.dequantize(*cache, mean, norm, 80, fmt), x)


def test_cache_without_room_for_blocks():
    """A prompt that fits its windows needs no block at all, and can be cut and read."""
    fmt = make_format("value", sink=4, recent=8)
    x = torch.randn(1, 1, 20, 16).half()
    cache = reference.prefill(x, torch.zeros(1, dtype=torch.int32), None, None, 0, fmt)
    reference.truncate_(*cache, 10, fmt)
    assert_same_bits(reference.dequantize(*cache, None, None, 10, fmt), x[:, :, :10])


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_steering_does_not_depend_on_the_default_dtype(default):
    """Which loaders of models like to change."""
    fmt = make_format("key", 3, "steered", 32, 0, 0, torch.float16, "pair8")
    x, start = torch.randn(1, 2, 64, 64, dtype=torch.float16), torch.zeros(1, dtype=torch.int32)
    expected = reference.prefill(x, start, None, None, 2, fmt)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        actual = reference.prefill(x, start, None, None, 2, fmt)
    finally:
        torch.set_default_dtype(before)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)
