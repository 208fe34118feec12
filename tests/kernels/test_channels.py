"""Channels of zeros behind those of the program: how many there are, and that nothing comes of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerq_compile import InnerQConfig
from innerq_compile.kernels import cpu, layout, reference
from innerq_compile.kernels import triton as triton_kernels
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.channels import held_head_dim, with_zeros, without_zeros
from innerq_compile.kernels.formats import MAX_HEAD_DIM, blocks_for
from innerq_compile.kernels.reference import backend as plain
from tests.helpers.strategies import seeds
from tests.helpers.triton_cases import poison_, rms_ratio

head_dims = st.integers(1, MAX_HEAD_DIM)
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 1e-2, torch.float32: 2e-5}


@given(head_dims, st.booleans())
def test_what_is_held_is_a_multiple_of_16_and_little_more(head_dim, quantized):
    held = held_head_dim(head_dim, quantized)
    assert held % 16 == 0 and head_dim <= held <= MAX_HEAD_DIM
    assert held - head_dim < 16 or (quantized and 3 * held <= 4 * head_dim)
    assert held_head_dim(held, quantized) == held


@pytest.mark.parametrize("quantized", [False, True])
def test_multiples_of_16_are_held_as_they_are(quantized):
    assert [held_head_dim(width, quantized) for width in range(16, 577, 16)] == list(range(16, 577, 16))


@pytest.mark.parametrize(
    ("head_dim", "quantized", "lossless"),
    [
        *((1, 16, 16), (36, 48, 48), (40, 48, 48), (50, 64, 64), (72, 80, 80), (100, 128, 112), (120, 128, 128)),
        *((180, 192, 192), (200, 256, 208), (300, 304, 304), (464, 464, 464), (512, 512, 512), (575, 576, 576)),
    ],
)
def test_head_dims_of_models(head_dim, quantized, lossless):
    assert (held_head_dim(head_dim), held_head_dim(head_dim, quantized=False)) == (quantized, lossless)


@pytest.mark.parametrize("head_dim", [1, 36, 64, 100, 300])
def test_zeros_come_and_go(head_dim):
    fmt = InnerQConfig().format_for("key", head_dim, torch.float32)
    x = torch.randn(2, 3, head_dim)
    held = with_zeros(x, fmt)
    assert held.shape == (2, 3, held_head_dim(head_dim)) and not held[..., head_dim:].any()
    back = without_zeros(held, fmt)
    assert torch.equal(back, x) and back.is_contiguous()
    if not fmt.zeros:
        assert held is x and back is x


# --- statistics of a prompt -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["channel", "half100", "interleaved36", "half20@7", "paper"])
@pytest.mark.parametrize("backend", [plain, triton_kernels], ids=["reference", "triton"])
def test_zeros_change_no_statistics_of_the_other_channels(norm, backend):
    if backend is triton_kernels:
        pytest.importorskip("triton")
    fmt = InnerQConfig().format_for("key", 100, torch.float32)
    keys, queries = torch.randn(2, 2, 90, 100) * 3 + 1, torch.randn(2, 4, 90, 100)
    start = torch.tensor([0, 11], dtype=torch.int32)

    def statistics(keys, queries):
        moments = reference.query_moments(queries, keys, start)
        divisor = reference.norm_divisor(moments, norm)
        return moments, *backend.key_statistics(keys, start, centre=True, normalize=True, norm=norm, divisor=divisor)

    narrow = statistics(keys, queries)
    wide = statistics(with_zeros(keys, fmt), with_zeros(queries, fmt))
    for ours, theirs in zip(wide, narrow, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(without_zeros(ours, fmt), theirs)
    profile = reference.query_profile(wide[0], wide[2], fmt.group_size)
    assert profile.any() and not profile[..., 100:].any()  # nothing asks for what is in the zeros


# --- numerics ---------------------------------------------------------------------------------------------------


def attention_of(query, keys, values, scale):
    """In float64, over the program's channels."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    return (query.double() @ keys.transpose(2, 3) * scale).softmax(-1) @ values


def check(backend, preset, head_dim, value_dim, dtype, seed=0, tokens=75, new=3, heads=2):
    """Prefill, appends and attention of the program's head_dims, by one backend, against float64 without zeros."""
    generator = torch.Generator().manual_seed(seed)
    config = InnerQConfig.preset(preset, sink=4, recent=8)
    formats = [config.format_for(role, d, dtype) for role, d in (("key", head_dim), ("value", value_dim))]
    caches, dense = [], []
    for fmt, width in zip(formats, (head_dim, value_dim), strict=True):
        x = torch.randn(1, heads, tokens + new, width, generator=generator).to(dtype)
        held, start = with_zeros(x, fmt), torch.zeros(1, dtype=torch.int32)
        capacity = blocks_for(fmt, tokens + new) + 2
        assert backend.supports_prefill(fmt, held)
        cache = backend.prefill(held[:, :, :tokens], start, None, None, capacity, fmt, None)
        poison_(cache)
        assert backend.supports_append(fmt, held)
        backend.append_(((cache, held[:, :, tokens:]),))
        caches.append(cache)
        read = reference.dequantize(cache, tokens + new, torch.float64)
        dense.append(without_zeros(read, fmt))
        assert read.isfinite().all()
        if not fmt.is_key or not fmt.quantized:
            assert not read[..., width:].any()  # no group of values has zeros beside other numbers
        assert rms_ratio(dense[-1], x) <= (0.6 if fmt.quantized else 0.0)
    query = torch.randn(1, 2 * heads, 1, head_dim, generator=generator).to(dtype)
    scale = head_dim**-0.5
    call = AttentionCall(with_zeros(query, formats[0]), *caches, None, None, None, scale)
    assert backend.supports_decode(call)
    held = backend.decode_attention(call)
    out = without_zeros(held, formats[1])
    assert out.shape == (1, 2 * heads, 1, value_dim) and not held[..., value_dim:].any()
    assert rms_ratio(out, attention_of(query, *dense, scale)) < TOLERANCE[dtype]


SIZES = [(36, 36), (40, 100), (100, 100), (120, 36), (464, 464), (512, 512), (576, 72), (1, 300)]


@pytest.mark.parametrize(("head_dim", "value_dim"), SIZES)
@pytest.mark.parametrize("preset", ["base", "lossless", "int4"])
def test_attention_is_that_without_zeros(preset, head_dim, value_dim):
    check(plain, preset, head_dim, value_dim, torch.float32)


@settings(max_examples=25)
@given(head_dims, head_dims, st.sampled_from(["base", "small", "hybrid", "lossless"]), seeds)
def test_attention_of_any_head_dims(head_dim, value_dim, preset, seed):
    check(plain, preset, head_dim, value_dim, torch.float16, seed, tokens=50)


#: Triton's interpreter takes minutes for the wide ones; tests/kernels/triton/test_attention.py has one of them.
IN_THE_INTERPRETER = [pytest.param(*sizes, marks=pytest.mark.slow) if min(sizes) > 256 else sizes for sizes in SIZES]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("head_dim", "value_dim"), IN_THE_INTERPRETER)
@pytest.mark.parametrize("preset", ["base", "lossless"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_triton_attention_is_that_without_zeros(preset, head_dim, value_dim, dtype):
    pytest.importorskip("triton")
    check(triton_kernels, preset, head_dim, value_dim, dtype, tokens=45, heads=1)


@pytest.mark.sampled(3)
@pytest.mark.skipif(not cpu.available(), reason="no C++ compiler, or INNERQ_CPU_KERNELS=0")
@pytest.mark.parametrize(("head_dim", "value_dim"), [(36, 100), (464, 512)])
@pytest.mark.parametrize("preset", ["base", "lossless"])
def test_cpu_attention_is_that_without_zeros(preset, head_dim, value_dim):
    check(cpu, preset, head_dim, value_dim, torch.float32)


def test_code_for_the_cpu_does_not_depend_on_the_number_of_zeros():
    """Models whose caches are held alike share what is compiled."""
    from innerq_compile.kernels.cpu.codegen import Side

    sides = [Side.of(InnerQConfig().format_for("key", d, torch.float32), 128, torch.float32) for d in (100, 120, 128)]
    assert sides[0] == sides[1] == sides[2]


def test_tensors_are_those_of_the_channels_that_are_held():
    narrow, wide = (InnerQConfig().format_for("key", d, torch.float16) for d in (100, 128))
    assert layout.shapes(narrow, 1, 2, 128, 5) == layout.shapes(wide, 1, 2, 128, 5)
