"""Packing, the order of scales, and the accounting of bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import layout, reference
from innerq_compile.kernels.formats import DTYPES, GROUP_SIZES, ROLES, CacheFormat, FormatError, blocks_for
from innerq_compile.kernels.modes import named, names_of
from tests.helpers.strategies import HEAD_DIMS, QUANTIZED_MODES, formats, make_format, seeds


@st.composite
def packings(draw):
    head_dim = draw(st.sampled_from(HEAD_DIMS))
    return draw(formats(head_dim, names=QUANTIZED_MODES)), head_dim


def random_codes(fmt: CacheFormat, head_dim: int, *lead: int) -> torch.Tensor:
    return torch.randint(0, 1 << fmt.bits, (*lead, fmt.block, head_dim), dtype=torch.int32)


# --- formats ----------------------------------------------------------------------------------------------------


@given(st.sampled_from(HEAD_DIMS).flatmap(lambda head_dim: formats(head_dim)))
def test_spec_names_the_format(fmt):
    assert CacheFormat.parse(fmt.spec) == fmt
    assert " " not in fmt.spec


def test_parse_refuses_other_words():
    with pytest.raises(FormatError, match="expected 7 fields"):
        CacheFormat.parse("key:3")


@given(st.integers(0, 600), st.integers(0, 64), st.integers(0, 128), st.sampled_from([32, 64, 128]))
def test_recent_window_is_held(length, sink, recent, group):
    fmt = make_format("value", group_size=group, sink=sink, recent=recent)
    left = length - sink - blocks_for(fmt, length) * fmt.block
    if length >= sink + recent:
        assert recent <= left < recent + fmt.block
    else:
        assert blocks_for(fmt, length) == 0


# --- packing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_fields_fill_their_halves_exactly(bits):
    places = [place for field in layout.field_bits(bits) for place in field]
    assert sorted(places) == [(half, bit) for half in range(bits) for bit in range(16)]


@given(packings(), seeds)
def test_unpack_is_the_inverse_of_pack(packing, seed):
    fmt, head_dim = packing
    torch.manual_seed(seed)
    codes = random_codes(fmt, head_dim, 2, 3)
    words = layout.pack(codes, fmt)
    assert words.dtype == torch.int32
    assert words.shape == (2, 3, layout.words_per_block(fmt, head_dim))
    assert words.shape[-1] * 32 == fmt.block * head_dim * fmt.bits  # exactly the bits of the codes
    assert torch.equal(layout.unpack(words, fmt, head_dim), codes)


@given(packings(), seeds)
def test_pack_is_the_inverse_of_unpack(packing, seed):
    """Every word is the packing of some codes: no bit of the storage is without meaning."""
    fmt, head_dim = packing
    torch.manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (2, layout.words_per_block(fmt, head_dim))).to(torch.int32)
    codes = layout.unpack(words, fmt, head_dim)
    assert int(codes.min()) >= 0 and int(codes.max()) < 1 << fmt.bits
    assert torch.equal(layout.pack(codes, fmt), words)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("role", ["key", "value"])
def test_extreme_codes(role, bits):
    fmt = make_format(role, bits)
    full = torch.full((fmt.block, 64), (1 << bits) - 1, dtype=torch.int64)
    assert bool((layout.pack(full, fmt) == -1).all())
    assert bool((layout.pack(torch.zeros_like(full), fmt) == 0).all())


@given(packings(), st.data())
def test_place_of_a_code(packing, data):
    """A single code lies where the module's docstring says, and nowhere else."""
    fmt, head_dim = packing
    token = data.draw(st.integers(0, fmt.block - 1))
    channel = data.draw(st.integers(0, head_dim - 1))
    code = data.draw(st.integers(1, (1 << fmt.bits) - 1))

    if fmt.is_key:
        slice_lo = math.gcd(head_dim // 16, 16)
        subs = 16 // slice_lo
        tokens_lo = fmt.block // subs
        slice_index, lane = divmod(channel, 16)
        hi, lo = divmod(slice_index, slice_lo)
        sub, column = divmod(token, tokens_lo)
        field, columns = sub * slice_lo + lo, tokens_lo
    else:
        subs = 16 // (fmt.block // 16)
        channels_lo = head_dim // subs
        slice_index, lane = divmod(token, 16)
        sub, column = divmod(channel, channels_lo)
        hi, field, columns = 0, slice_index * subs + sub, channels_lo

    expected = np.zeros(layout.words_per_block(fmt, head_dim), dtype=np.uint32)
    for m, (half, bit) in enumerate(layout.field_bits(fmt.bits)[field]):
        run = 8 if columns % 8 == 0 else columns
        word = ((hi * fmt.bits + half) * (columns // run) + column // run) * 8 * run + lane // 2 * run + column % run
        expected[word] |= np.uint32(((code >> m) & 1) << (bit + 16 * (lane % 2)))

    codes = torch.zeros((fmt.block, head_dim), dtype=torch.int32)
    codes[token, channel] = code
    assert np.array_equal(layout.pack(codes, fmt).numpy().view(np.uint32), expected)


@given(packings(), st.data())
def test_functions_of_integers_say_where_pack_puts_a_code(packing, data):
    """Kernels compute addresses with them, see ``triton/addresses.py``."""
    fmt, head_dim = packing
    token = data.draw(st.integers(0, fmt.block - 1))
    channel = data.draw(st.integers(0, head_dim - 1))
    along, across = (channel, token) if fmt.is_key else (token, channel)
    slices = layout.word_slices(fmt, head_dim)
    columns = layout.plane_columns(fmt.is_key, slices, fmt.block, head_dim)
    (high, slice_lo), lane = divmod(along // 16, slices), along % 16
    sub, column = divmod(across, columns)
    assert sub < layout.sub_ranges(slices)
    field = sub * layout.sub_range_stride(fmt.is_key, slices) + slice_lo * layout.slice_stride(fmt.is_key, slices)
    plane, run = layout.plane_words(columns), layout.column_run(columns)
    first = high * fmt.bits * plane + column // run * layout.plane_words(run) + lane // 2 * run + column % run
    words = torch.zeros(layout.words_per_block(fmt, head_dim), dtype=torch.int64)
    for bit in range(fmt.bits):
        half = layout.half_of_bit(fmt.bits, field, bit)
        words[first + half * plane] |= 1 << (layout.place_of_bit(fmt.bits, field, bit) + 16 * (lane % 2))
    codes = torch.zeros((fmt.block, head_dim), dtype=torch.int64)
    codes[token, channel] = (1 << fmt.bits) - 1
    assert torch.equal(layout.pack(codes, fmt).to(torch.int64) & 0xFFFFFFFF, words)


@given(packings(), st.data())
def test_functions_of_integers_say_where_a_scale_lies(packing, data):
    fmt, head_dim = packing
    token = data.draw(st.integers(0, fmt.block - 1))
    channel = data.draw(st.integers(0, head_dim - 1))
    block = torch.zeros((fmt.block, head_dim))
    block[token, channel] = 1
    along, across = (channel, token) if fmt.is_key else (token, channel)
    group = along // fmt.group_size * layout.group_row(fmt.is_key, fmt.block, head_dim) + across
    groups = layout.split_groups(block, fmt)
    assert groups.shape[0] == layout.block_groups(fmt.group_size, fmt.block, head_dim)
    assert groups.any(-1).nonzero().flatten().tolist() == [group]


def test_pack_takes_any_integer_dtype():
    fmt = make_format(bits=5)
    codes = random_codes(fmt, 64, 2)
    words = layout.pack(codes, fmt)
    for dtype in (torch.uint8, torch.int16, torch.int64):
        assert torch.equal(layout.pack(codes.to(dtype), fmt), words)


# --- groups -----------------------------------------------------------------------------------------------------


@given(packings(), seeds)
def test_groups_run_along_the_inner_dimension(packing, seed):
    fmt, head_dim = packing
    torch.manual_seed(seed)
    x = torch.randn(2, fmt.block, head_dim)
    groups = layout.split_groups(x, fmt)
    size = fmt.group_size
    assert groups.shape == (2, layout.groups_per_block(fmt, head_dim), size)
    assert torch.equal(layout.join_groups(groups, fmt, head_dim), x)
    for index in {0, 1, groups.shape[1] // 2, groups.shape[1] - 1}:
        if fmt.is_key:
            part, token = divmod(index, fmt.block)
            expected = x[:, token, part * size : (part + 1) * size]
        else:
            part, channel = divmod(index, head_dim)
            expected = x[:, part * size : (part + 1) * size, channel]
        assert torch.equal(groups[:, index], expected)


# --- bytes ------------------------------------------------------------------------------------------------------


@st.composite
def sized_caches(draw):
    head_dim = draw(st.sampled_from(HEAD_DIMS))
    dtype = draw(st.sampled_from(DTYPES))
    return draw(formats(head_dim, max_window=40, dtype=dtype)), head_dim, dtype


@given(sized_caches(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 260), st.integers(0, 3))
def test_cache_bytes_are_the_bytes_of_prefill(cache, batch, heads, tokens, spare):
    fmt, head_dim, dtype = cache
    capacity = blocks_for(fmt, tokens) + spare
    x = torch.randn(batch, heads, tokens, head_dim).to(dtype)
    start = torch.zeros(batch, dtype=torch.int32)
    held = reference.prefill(x, start, None, None, capacity, fmt)
    wanted = layout.shapes(fmt, batch, heads, head_dim, capacity)
    for tensor, (shape, own) in zip(held, wanted.values(), strict=True):
        assert tensor.shape == shape and tensor.dtype == (own or dtype) and tensor.is_contiguous()
    assert sum(t.nbytes for t in held) == layout.cache_bytes(fmt, batch, heads, head_dim, dtype, capacity)

    statistics = reference.key_statistics(x, start, centre=True, normalize=True)
    with_statistics = layout.cache_bytes(fmt, batch, heads, head_dim, dtype, capacity, statistics=2)
    assert sum(t.nbytes for t in (*held, *statistics)) == with_statistics


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("role", "mode"), [(r, m) for r in ROLES for m in names_of(r) if named(m).stores_codes])
def test_effective_bits(role, mode, bits):
    """A quantized element costs its code and its share of the scale (and of the zero point)."""
    for size in GROUP_SIZES:
        fmt = make_format(role, bits, mode, size)
        block = layout.cache_bytes(fmt, 1, 1, 128, torch.float16, 1) - layout.cache_bytes(
            fmt, 1, 1, 128, torch.float16, 0
        )
        own_zero = named(mode).has_zero and "float16" in named(mode).scale_types  # else it shares the word of the scale
        scales = 2 if own_zero else 1
        assert block * 8 == fmt.block * 128 * (bits + scales * 16 / size)


@pytest.mark.parametrize(("mode", "scale_dtype", "scale_bits"), [("hybrid", "pair8", 16), ("signed", "float8_e5m2", 8)])
@pytest.mark.parametrize("role", ["key", "value"])
def test_effective_bits_of_short_scales(role, mode, scale_dtype, scale_bits):
    for size in GROUP_SIZES:
        fmt = make_format(role, 3, mode, size, scale_dtype=scale_dtype)
        one, none = (layout.cache_bytes(fmt, 1, 1, 128, torch.float16, blocks) for blocks in (1, 0))
        assert (one - none) * 8 == fmt.block * 128 * (3 + scale_bits / size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "budget"), [(4096, 0.26), (32768, 0.225)])
def test_budget_of_the_base_preset(tokens, budget, dtype):
    """3-bit keys and values with their windows, at head_dim 128, against a cache of 16-bit elements."""
    total = 0
    for role in ("key", "value"):
        fmt = make_format(role, dtype=dtype)
        statistics = 2 if role == "key" else 0
        total += layout.cache_bytes(fmt, 1, 8, 128, dtype, blocks_for(fmt, tokens), statistics=statistics)
    dense = 2 * 8 * tokens * 128 * 2
    assert total <= budget * dense, f"{total / dense:.4f} of the 16-bit cache"


def test_lossless_blocks_hold_the_elements():
    fmt = make_format(mode="none")
    assert layout.words_per_block(fmt, 80) == 32 * 80
    assert layout.scales_per_block(fmt, 80) == 0
    dense = 4096 * 80 * 4
    assert layout.cache_bytes(fmt, 1, 1, 80, torch.float32, blocks_for(fmt, 4096)) - dense == 32 * 80 * 4 + 16
