"""Formats, caches and calls that the tests of the CPU kernels share."""

from __future__ import annotations

import dataclasses

import torch

from innerq_compile.kernels import cpu, layout, reference
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.cache import Cache
from innerq_compile.kernels.formats import CacheFormat, blocks_for

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SINK, RECENT = 4, 40


def pair(key, value, head_dim, value_dim, dtype, scale_dtype, sink=SINK, recent=RECENT):
    """``(key format, value format, head_dim, value_dim, dtype)`` of ``(bits, mode, group_size)`` each."""
    k, v = (CacheFormat(r, *f, sink, recent, scale_dtype) for r, f in (("key", key), ("value", value)))
    return k, v, head_dim, value_dim, dtype


# Every width on both sides, every mode, group sizes above and below a block of 32 tokens, head_dims whose words run
# over, wrap around and divide a vector, and every pair of cache and scale dtype.
PAIRS = {
    "base-D64-f32": pair((3, "signed", 32), (3, "signed", 32), 64, 64, F32, "bfloat16"),
    "4bit-asymmetric-g64-D128-bf16": pair((4, "asymmetric", 64), (4, "asymmetric", 64), 128, 128, BF16, "bfloat16"),
    "2bit-hybrid-D80-f16": pair((2, "hybrid", 16), (2, "hybrid", 32), 80, 80, F16, "float16"),
    "5bit-symmetric-D96-f32": pair((5, "symmetric", 32), (5, "symmetric", 16), 96, 96, F32, "float32"),
    "6bit-g128-D48-f32": pair((6, "signed", 16), (6, "hybrid", 128), 48, 48, F32, "float16"),
    "7bit-D256-Dv160-bf16": pair((7, "asymmetric", 128), (7, "signed", 32), 256, 160, BF16, "float32"),
    "8bit-D16-Dv256-f16": pair((8, "symmetric", 16), (8, "asymmetric", 32), 16, 256, F16, "bfloat16"),
    "2bit-paper-D64-f32": pair((3, "symmetric", 32), (2, "paper_hybrid", 32), 64, 64, F32, "float32"),
    "pair8-hybrid3-hybrid2-D64-f32": pair((3, "hybrid", 32), (2, "hybrid", 16), 64, 64, F32, "pair8"),
    "pair8-asymmetric8-hybrid5-D80-f16": pair((8, "asymmetric", 16), (5, "hybrid", 64), 80, 80, F16, "pair8"),
    "pair8-hybrid3-anchored3-D64-f32": pair((3, "hybrid", 32), (3, "anchored", 32), 64, 64, F32, "pair8"),
    "pair8-anchored2-g16-D80-bf16": pair((2, "asymmetric", 16), (2, "anchored", 16), 80, 80, BF16, "pair8"),
    "steered3-anchored3-D64-f16": pair((3, "steered", 32), (3, "anchored", 32), 64, 64, F16, "pair8"),
    "steered2-g16-D80-bf16": pair((2, "steered", 16), (2, "anchored", 16), 80, 80, BF16, "pair8"),
    "steered5-g64-D192-f32": pair((5, "steered", 64), (5, "anchored", 32), 192, 64, F32, "pair8"),
    "anchored4-g64-D96-f16": pair((4, "asymmetric", 32), (4, "anchored", 64), 96, 96, F16, "float16"),
    "e5m2-signed3-symmetric4-D64-bf16": pair((3, "signed", 32), (4, "symmetric", 32), 64, 64, BF16, "float8_e5m2"),
    "e5m2-symmetric7-signed6-D96-f32": pair((7, "symmetric", 32), (6, "signed", 32), 96, 96, F32, "float8_e5m2"),
    "steered3-anchored3-D480-f32": pair((3, "steered", 32), (3, "anchored", 32), 480, 480, F32, "pair8"),
    "none-D464-Dv512-bf16": pair((8, "none", 16), (3, "anchored", 32), 464, 512, BF16, "pair8"),
    "hybrid4-D576-f16": pair((4, "hybrid", 32), (5, "hybrid", 64), 576, 576, F16, "pair8"),
    "none-D64-f32": pair((8, "none", 32), (8, "none", 32), 64, 64, F32, "bfloat16"),
    "none-g64-D80-bf16": pair((8, "none", 16), (8, "none", 64), 80, 80, BF16, "bfloat16"),
    "none-2bit-D112-f32": pair((8, "none", 16), (2, "symmetric", 32), 112, 112, F32, "bfloat16"),
}
BASE = PAIRS["base-D64-f32"]
# The rings of keys and values differ where groups of values are longer than a block of keys.
ROLLING = {
    "rolling-D64-f32": pair((8, "rolling", 32), (8, "rolling", 32), 64, 64, F32, "bfloat16", sink=0),
    "rolling-g64-D80-bf16": pair((8, "rolling", 16), (8, "rolling", 64), 80, 80, BF16, "bfloat16", sink=0),
    "rolling-D16-Dv256-f16": pair((8, "rolling", 16), (8, "rolling", 32), 16, 256, F16, "float16", sink=0),
}
TOLERANCE = {F32: 2e-5, BF16: 1e-2, F16: 1.5e-3}


def randn(*shape, dtype=F32):
    return torch.randn(*shape).to(dtype)


def strided(x):
    """The same numbers with the layout that attention layers have, ``[B, N, H, D]``."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def with_windows(formats, k_window, v_window):
    """A pair of formats with other sizes of the windows of keys and of values, ``(sink, recent)`` each.

    They change nothing of the compiled code.
    """
    windows = (k_window, v_window)
    resized = (dataclasses.replace(f, sink=w[0], recent=w[1]) for f, w in zip(formats[:2], windows, strict=True))
    return *resized, *formats[2:]


def make_caches(formats, lengths, heads=2, capacity_slack=3):
    """Caches of random tokens whose sequences have ``lengths`` real tokens, left-padded to the longest."""
    k_fmt, v_fmt, head_dim, value_dim, dtype = formats
    tokens = max(lengths)
    start = torch.tensor([tokens - n for n in lengths], dtype=torch.int32)
    caches = []
    for fmt, dim in ((k_fmt, head_dim), (v_fmt, value_dim)):
        capacity = blocks_for(fmt, tokens) + capacity_slack
        x = randn(len(lengths), heads, tokens, dim, dtype=dtype)
        caches.append(reference.prefill(x, start, None, None, capacity, fmt))
    return caches


def clone(cache: Cache) -> Cache:
    return cache.map(torch.clone)


def poison(cache: Cache) -> None:
    """Fill all that holds no token: spare blocks with garbage and NaN, unused slots with NaN."""
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    blocks = reference.quantized_blocks(state, fmt)
    spare = torch.arange(codes.shape[2]) >= blocks[..., None]
    codes[spare] = 0x5A5A5A5A if fmt.quantized else float("nan")
    scales[spare] = float("nan") if scales.is_floating_point() else 0x7F  # short scales: large
    slot = torch.arange(fmt.window)
    length, first = state[..., layout.LENGTH, None], (fmt.sink + blocks * fmt.block)[..., None]
    token = torch.where(slot < fmt.sink, slot, first + (slot - first) % fmt.ring)
    window[:, :, : fmt.window][token >= length] = float("nan")


def bits(x):
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def assert_same(cache: Cache, expected: Cache) -> None:
    """Equal bit for bit wherever a cache holds tokens (NaN of any payload equals NaN)."""
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    assert torch.equal(state, expected.state)
    blocks = reference.quantized_blocks(state, fmt)
    held = torch.arange(codes.shape[2]) < blocks[..., None]
    if fmt.quantized:
        assert torch.equal(codes[held], expected.codes[held])
    else:
        assert torch.equal(bits(codes[held]), bits(expected.codes[held]))
    got, want = (s.view(torch.float8_e5m2).float() if s.dtype == torch.uint8 else s for s in (scales, expected.scales))
    got, want = got[held], want[held]
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())
    slot, sink = torch.arange(fmt.window), fmt.sink
    length, first = state[..., layout.LENGTH, None], (fmt.sink + blocks * fmt.block)[..., None]
    token = torch.where(slot < sink, slot, first + (slot - first) % fmt.ring)
    used = token < length
    window, wanted = window[:, :, : fmt.window], expected.window[:, :, : fmt.window]
    assert torch.equal(bits(window[used]), bits(wanted[used]))


def assert_attends(
    formats,
    caches,
    query,
    *,
    mask=None,
    causal=False,
    softcap=0.0,
    sink_logits=None,
    scale=None,
    dropped=0,
    value_query=None,
    value_heads=None,
    tolerance=1.0,
):
    *_, head_dim, _, dtype = formats
    scale = head_dim**-0.5 if scale is None else scale
    call = AttentionCall(
        query, *caches, mask, None, sink_logits, scale, softcap, causal, dropped, value_query, value_heads
    )
    assert cpu.supports_decode(call)
    out = cpu.decode_attention(call)
    expected, sums = reference.decode_attention_lse(call, torch.float64)
    again, found = cpu.decode_attention_lse(call)
    assert torch.equal(again, out) or out.isnan().any()
    torch.testing.assert_close(found.double(), sums, rtol=1e-4, atol=2e-3 * tolerance, equal_nan=True)
    assert out.dtype == query.dtype and out.shape == expected.shape and out.is_contiguous()
    limit = TOLERANCE[dtype] * tolerance
    torch.testing.assert_close(out.double(), expected, rtol=limit, atol=limit, equal_nan=True)
