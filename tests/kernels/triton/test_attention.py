"""Triton decode attention against the reference in float64, in the interpreter (or on the GPU where there is one)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from innerq_compile.kernels import layout, reference
from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.triton import support
from tests.helpers.strategies import formats, make_format, pair, seeds, with_rolling
from tests.helpers.triton_cases import TOLERANCE, Attention, rms_ratio

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


CASES = [
    # every mode and bit width, in every dtype
    Attention(**pair(2, 2), heads=2),
    Attention(**pair(3, 2, "symmetric", "hybrid"), head_dim=128),
    Attention(**pair(4, 4, "signed", "asymmetric", BF16), head_dim=128),
    Attention(**pair(5, 6, "hybrid", "symmetric", F32)),
    Attention(**pair(7, 5, "asymmetric", "signed")),
    Attention(**pair(8, 8, "symmetric", "hybrid", F32)),
    Attention(**pair(6, 7, "signed", "asymmetric", BF16)),
    Attention(**pair(3, 3, "none", "none")),
    Attention(**pair(3, 3, "none", "none", F32), head_dim=80),
    Attention(**pair(3, 4, "none", "signed", BF16)),
    # head_dim, also different ones
    Attention(**pair(3, 3, group=16), head_dim=80),
    Attention(**pair(4, 2, "hybrid", "asymmetric"), head_dim=96),
    Attention(**pair(3, 3, dtype=F32), head_dim=256, heads=1),
    Attention(**pair(3, 3), head_dim=96, value_dim=64),
    Attention(**pair(4, 3, group=16), head_dim=16, value_dim=112),
    Attention(**pair(3, 2, "steered", "anchored", scale="pair8"), head_dim=320, group=1, batch=1),
    Attention(**pair(3, 3, "steered", "anchored", BF16, scale="pair8", group=16), head_dim=464, batch=1),
    Attention(**pair(4, 4, "hybrid", "hybrid", scale="pair8"), head_dim=480, value_dim=512, batch=1),
    Attention(**pair(3, 3, "steered", "anchored", F32, scale="pair8"), head_dim=512, rows=2, batch=1),
    Attention(**pair(5, 7), head_dim=576, value_dim=64, batch=1),
    Attention(**pair(3, 3, "none", "none"), head_dim=464, value_dim=576, batch=1),
    Attention(**pair(3, 3, dtype=BF16), head_dim=512, value_dim=320, heads=1),
    Attention(**pair(2, 4, group=16), head_dim=464, value_dim=576, heads=1),
    # latent attention: a part of the query is multiplied by the values
    Attention(**pair(8, 3, "hybrid", "anchored", scale="pair8"), head_dim=64, value_dim=128, group=16, latent=True),
    Attention(
        **pair(8, 3, "hybrid", "anchored", F32, scale="pair8", group=16), head_dim=16, value_dim=80, rows=5, latent=True
    ),
    Attention(**pair(3, 3, "none", "none", BF16), head_dim=64, value_dim=512, batch=1, group=20, latent=True),
    Attention(**pair(8, 4, dtype=BF16), head_dim=64, value_dim=512, batch=1, group=128, tokens=90, latent=True),
    Attention(**pair(), group=3, rows=3, mask="added", padded=True, softcap=5.0, sinks=True, latent=True),
    Attention(**pair(), rows=3, mask="bool", hide=40, dropped=1, causal=False, latent=True),
    # values of other heads
    Attention(**pair(3, 3, "steered", "anchored", scale="pair8"), heads=4, value_heads=(2, 2)),
    Attention(**pair(), heads=6, value_heads=(1, 3), group=3, rows=2, mask="bool", padded=True, tokens=230),
    Attention(**pair(3, 3, "none", "none", BF16), heads=4, value_heads=(0, 2)),
    Attention(**pair(5, 6, dtype=F32), heads=4, value_heads=(3, 1), hide=40, dropped=1),
    Attention(**pair(8, 3, "hybrid", "anchored", scale="pair8"), heads=2, value_heads=(1, 1), latent=True),
    # head_dims that are no power of two in the fast kernel: columns and groups that are dead, several slices_hi
    Attention(**pair(3, 3, "steered", "anchored", BF16, scale="pair8"), head_dim=96, group=4),
    Attention(**pair(2, 3, group=16), head_dim=112, rows=9),
    Attention(**pair(8, 4, "steered", "anchored", BF16, scale="pair8"), head_dim=192, value_dim=128),
    Attention(**pair(3, 8, "hybrid", "hybrid"), head_dim=160, mask="bool", padded=True),
    Attention(**pair(3, 3, group=16), head_dim=240, value_dim=32, tokens=90),
    Attention(**pair(4, 2, "asymmetric", "asymmetric", group=64), head_dim=192, value_dim=240),
    Attention(**pair(3, 3), head_dim=32, mask="open", padded=True, causal=False),
    Attention(**pair(3, 3, group=16), head_dim=48, value_dim=144, softcap=20.0),
    # tiles that are blocks in the portable kernel
    Attention(**pair(5, 6, "hybrid", "symmetric", F32, sink=32, recent=40), tokens=200),
    Attention(**pair(7, 8, "asymmetric", "signed", sink=32, recent=40, group=16), head_dim=112, value_dim=48, rows=3),
    Attention(**pair(6, 5, "signed", "hybrid", sink=32, recent=40), head_dim=192, tokens=200, keep=170),
    Attention(**pair(5, 3, "steered", "anchored", group=16, scale="pair8", sink=0, recent=33), head_dim=80, rows=2),
    Attention(**pair(3, 3, "none", "none", BF16, sink=32, recent=40), head_dim=80, tokens=200),
    Attention(**pair(3, 3, "none", "hybrid", sink=32, recent=40), head_dim=32, value_dim=256, tokens=200),
    Attention(**pair(5, 5, "signed", "signed", F32, sink=0, recent=0, group=16), head_dim=16),
    Attention(**pair(5, 3, "symmetric", "hybrid", sink=32, recent=40, group=64, v_group=16), head_dim=256, tokens=200),
    Attention(**pair(3, 4, "signed", "symmetric", scale="float8_e5m2", sink=0, recent=40), keep=110),
    Attention(
        **pair(8, 3, "hybrid", "anchored", sink=32, recent=40, scale="pair8"),
        **{"head_dim": 64, "value_dim": 512, "batch": 1, "group": 20, "latent": True},
    ),
    # groups, scales and windows
    Attention(**pair(3, 3, group=64, v_group=64), head_dim=64),
    Attention(**pair(3, 2, "asymmetric", "hybrid", group=16, v_group=128), head_dim=64, tokens=330),
    Attention(**pair(4, 4, scale="float32")),
    Attention(**pair(4, 4, dtype=F32, scale="float16")),
    Attention(**pair(3, 2, "hybrid", "asymmetric", scale="pair8")),
    Attention(**pair(4, 8, "asymmetric", "hybrid", BF16, scale="pair8", group=16), head_dim=80),
    Attention(**pair(3, 2, "signed", "symmetric", scale="float8_e5m2")),
    Attention(**pair(3, 3, sink=0, recent=0)),
    Attention(**pair(3, 3, sink=32, recent=96), tokens=333),
    Attention(**pair(3, 3, sink=1, recent=5, v_sink=9, v_recent=40)),
    # query rows: heads, tokens, more than a tile
    Attention(**pair(), group=1, heads=3),
    Attention(**pair(), group=7, rows=2),
    Attention(**pair(), group=16),
    Attention(**pair(), group=3, rows=13),
    Attention(**pair(), group=20, causal=False),
    Attention(**pair(), group=2, rows=5, causal=False),
    Attention(**pair(), group=2, rows=40, tokens=90),  # a prompt in chunks
    Attention(**pair(), group=2, rows=33, tokens=130, mask="bool", padded=True, causal=False),
    Attention(**pair(dtype=F32), group=2, rows=33, tokens=130, mask="added", padded=True, causal=False),
    # lengths around the windows, padding, crops
    Attention(**pair(), tokens=1),
    Attention(**pair(), tokens=3),
    Attention(**pair(), tokens=24),
    Attention(**pair(), tokens=56, rows=9),
    Attention(**pair(), padded=True, batch=4),
    Attention(**pair(sink=0), padded=True, batch=3, rows=6, tokens=90),
    Attention(**pair(), keep=101),
    Attention(**pair(), keep=101, padded=True, batch=3),
    Attention(**pair(), keep=2, rows=4),
    # masks and the rest
    Attention(**pair(), mask="bool"),
    Attention(**pair(), mask="bool", padded=True, rows=3),
    Attention(**pair(), mask="added", padded=True, causal=False),
    Attention(**pair(), mask="added-heads", rows=2, group=3),
    Attention(**pair(), mask="open", padded=True, causal=False),
    Attention(**pair(), mask="open", causal=False, rows=5, heads=2, tokens=260),
    Attention(**pair(), mask="open-added", padded=True, batch=4, causal=False, tokens=260),
    Attention(**pair(dtype=BF16), mask="open-added", causal=True, rows=5, keep=237, tokens=260),
    Attention(**pair(), mask="open", rows=3, softcap=20.0, head_dim=128, tokens=200),
    Attention(**pair(4, 3, "signed", "none"), mask="open", padded=True),
    Attention(**pair(), mask="nothing"),
    Attention(**pair(), mask="nothing", sinks=True),
    Attention(**pair(), softcap=3.0),
    Attention(**pair(dtype=F32), softcap=50.0, sinks=True),
    Attention(**pair(dtype=BF16), sinks=True, rows=2),
    Attention(**pair(dtype=BF16), sinks="by-row", rows=2),
    Attention(**pair(), mask="nothing", sinks="by-row"),
    Attention(**pair(), room=40),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_attention_is_the_reference(case):
    case.check(DEVICE, torch.Generator().manual_seed(1), splits=3)


#: Tokens at the front that the program has dropped: none in all, in the sinks, in a block, all blocks, in the ring.
HIDDEN = [
    *(Attention(**pair(), tokens=200, hide=hide, dropped=1) for hide in (1, 4, 37, 52, 165, 175, 190)),
    Attention(**pair(), tokens=200, hide=60, padded=True, batch=4),
    Attention(**pair(), tokens=200, hide=3, dropped=-50, rows=3),
    Attention(**pair(dtype=BF16), tokens=200, hide=90, mask="bool", head_dim=128),
    Attention(**pair(), tokens=260, hide=90, dropped=2, mask="open", causal=False, padded=True, batch=3),
    Attention(**pair(), tokens=260, hide=150, mask="open-added", causal=False, rows=2, softcap=20.0),
    Attention(**pair(), tokens=260, hide=90, softcap=20.0),
    Attention(**pair(4, 4, group=16), tokens=230, hide=91, dropped=1, head_dim=80, mask="added"),
    Attention(**pair(3, 3, "none", "none"), tokens=230, hide=91, padded=True),
    Attention(**pair(), tokens=9, hide=9),
    Attention(**pair(4, 4, group=16), tokens=9, hide=11, head_dim=80),
    Attention(**pair(5, 5, sink=32, recent=40), tokens=260, hide=70, dropped=1, padded=True),
    Attention(**pair(3, 3, "rolling", "rolling", sink=0, recent=31), tokens=63, rows=2),
    Attention(**pair(3, 3, "rolling", "rolling", sink=0, recent=31), tokens=263, hide=205, dropped=1, padded=True),
    Attention(**pair(3, 3, "rolling", "rolling", BF16, sink=0, recent=31), tokens=999, hide=940, mask="open"),
    Attention(**pair(3, 3, "rolling", "rolling", F32, sink=0, recent=31), tokens=999, hide=940, mask="added", rows=3),
]


@pytest.mark.parametrize("case", HIDDEN, ids=lambda case: case.id)
def test_hidden_tokens_are_not_attended_to(case):
    case.check(DEVICE, torch.Generator().manual_seed(1), splits=3)


@st.composite
def partly_hidden(draw, fields: bool):
    """A call to a cache of which the program has dropped any number of tokens. ``fields``: for the fast kernel."""
    if fields:
        dtype, head_dim = draw(st.sampled_from([F16, BF16])), 64
        sink, recent = draw(st.sampled_from([0, 4, 40])), draw(st.integers(0, 50))
        k_bits, v_bits = draw(st.sampled_from([2, 3, 4, 8])), draw(st.sampled_from([2, 3, 4, 8]))
        k_mode, v_mode = draw(st.sampled_from(["signed", "hybrid"])), draw(st.sampled_from(["signed", "asymmetric"]))
        sides = pair(k_bits, v_bits, k_mode, v_mode, dtype, sink=sink, recent=recent)
    else:
        dtype, head_dim = draw(st.sampled_from([F16, BF16, F32])), draw(st.sampled_from([16, 64, 80]))
        k_fmt, v_fmt = (
            draw(with_rolling(formats(head_dim, roles=(role,), max_window=50, dtype=dtype)))
            for role in ("key", "value")
        )
        sides = {"k_fmt": k_fmt, "v_fmt": v_fmt, "dtype": dtype}
    both = (sides["k_fmt"], sides["v_fmt"])
    tokens = draw(st.integers(1, 260))
    dropped = draw(st.integers(-3, 3))
    # a rolling cache does not have more tokens than its ring
    least = max([0, *(tokens - fmt.ring + dropped for fmt in both if fmt.rolls)])
    return Attention(
        **sides,
        batch=draw(st.integers(1, 2)),
        group=draw(st.sampled_from([1, 3])),
        rows=draw(st.integers(1, 3)),
        tokens=tokens,
        head_dim=head_dim,
        padded=draw(st.booleans()),
        hide=draw(st.integers(least, max(least, tokens))),
        dropped=dropped,
        mask=draw(st.sampled_from(["none", "none", "bool", "added", "open", "open-added"])),
        causal=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 20.0])),
        sinks=draw(st.sampled_from([False, True, "by-row"])),
    )


@settings(max_examples=60)
@given(st.one_of(partly_hidden(True), partly_hidden(False)), st.sampled_from([None, 1, 3]), seeds)
def test_any_tokens_may_be_hidden(case, splits, seed):
    for fmt in (case.k_fmt, case.v_fmt):
        assume(support.format_supported(fmt, case.head_dim, case.dtype))
    case.check(DEVICE, torch.Generator().manual_seed(seed), splits=splits)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["rolling", "signed"])
def test_a_sliding_window_is_its_last_tokens(mode):
    """Steps of a program that concatenates, attends to ``width`` tokens at most, and keeps all but the first of them.

    A rolling cache wraps many times; the other one quantizes what the window still has.
    """
    width, prompt, head_dim = 50, 20, 64
    k_fmt, v_fmt = (make_format(role, 8, mode, sink=0, recent=width - 32) for role in ("key", "value"))
    dense = torch.randn(2, 1, 2, 320, head_dim, dtype=F16).to(DEVICE)
    start = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    if mode == "signed":
        dense = dense[:, :, :, :130]
    caches = [
        kernels.prefill(x[:, :, :prompt], start, None, None, 12, fmt)
        for fmt, x in zip((k_fmt, v_fmt), dense, strict=True)
    ]
    kept, steps = prompt, torch.Generator().manual_seed(1)
    for t in range(prompt, dense.shape[3]):
        drop = max(kept + 1 - (width - 1), 0)
        new = [x[:, :, t : t + 1] for x in dense]
        kernels.append_(tuple(zip(caches, new, strict=True)), drop)
        if t % 23 == 0 or t < prompt + 2:
            query = torch.randn(1, 4, 1, head_dim, generator=steps).to(F16).to(DEVICE)
            call = AttentionCall(query, *caches, None, None, None, head_dim**-0.5, dropped=drop)
            seen = dense[:, :, :, t - kept : t + 1].double().repeat_interleave(2, 2)
            expected = torch.nn.functional.scaled_dot_product_attention(query.double(), *seen)
            error = rms_ratio(kernels.decode_attention(call), expected)
            assert error < (TOLERANCE[F16] if mode == "rolling" else 0.05)
        kept = kept + 1 - drop
    assert kept == width - 1
    for cache in caches:
        assert (layout.ends(cache.state) == kept).all() and (cache.state[..., layout.LENGTH] == dense.shape[3]).all()


def test_splits_of_a_rolling_cache_follow_its_ring(monkeypatch):
    from innerq_compile.kernels.triton import attention

    monkeypatch.setattr(attention, "_multiprocessors", lambda device: 132)
    for recent, splits in ((96, 1), (1000, 8)):
        formats_of = pair(3, 3, "rolling", "rolling", sink=0, recent=recent)
        call = Attention(**formats_of, room=1000).call(DEVICE, torch.Generator().manual_seed(1))
        assert attention.plan_partials(call).splits == splits


@pytest.mark.parametrize("splits", [None, 1, 2, 17])
def test_any_number_of_splits(splits):
    """More splits than tiles of tokens leave some empty."""
    Attention(**pair(), tokens=150, padded=True).check(
        DEVICE, torch.Generator().manual_seed(2), repeat=True, splits=splits
    )


@pytest.mark.parametrize("fields", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128, 256, 512])
def test_partial_results_do_not_grow_with_the_context(fields, head_dim, monkeypatch):
    """They are bounded by the device, or twice the rows of the output, whichever is more."""
    from innerq_compile.kernels.triton import attention

    monkeypatch.setattr(attention, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(attention, "shared_memory", lambda device: 232_448)
    device = torch.device("cuda")
    for sequences in (1, 8, 32, 256):
        for rows in (1, 4, 8, 16, 17, 64, 68, 512, 4096, 16384, 65536):
            config = attention.choose_config(sequences, rows, head_dim, head_dim)
            tile = (8 if rows <= 8 else 16) if fields else attention.portable_tile(device, rows, head_dim, head_dim)[0]
            for tokens in (128, 4096, 131072, 1 << 22):
                tiling = attention.choose_tiling(device, fields, tile, sequences, rows, tokens, config, None)
                assert tiling.rows * tiling.row_tiles >= rows
                parts, programs = tiling.splits * sequences * rows, config.programs if fields else 4
                assert parts <= max(132 * programs * tiling.rows, 2 * sequences * rows, 3 * 64 * 16)
    assert parts == (2 if fields else 1) * sequences * rows  # many rows: one share, and one of the windows


def test_what_does_not_fit_a_small_gpu(monkeypatch):
    """Latent attention is left to the reference, with a reason; other wide heads have smaller tiles."""
    from innerq_compile.kernels.triton import attention

    wide = {"head_dim": 64, "value_dim": 512, "batch": 1, "group": 20}
    call = Attention(**pair(8, 3, sink=32), **wide, latent=True).call(DEVICE, torch.Generator().manual_seed(1))
    assert kernels.supports_decode(call) and attention.plan_partials(call, 1).constants["ROWS"] == 32
    monkeypatch.setattr(support, "shared_memory", lambda device: 101_376)  # of compute capability 8.9
    monkeypatch.setattr(attention, "shared_memory", support.shared_memory)
    assert not kernels.supports_decode(call)
    assert "more than this GPU has" in kernels.decode_kernel(call).reason
    call = dataclasses.replace(call, value_query=None)
    assert kernels.supports_decode(call) and attention.plan_partials(call, 1).constants["ROWS"] == 16


def test_huge_numbers_keep_their_range():
    """A bfloat16 query and keys beyond the range of float16 give what the reference gives."""
    case = Attention(**pair(4, 4, dtype=BF16))
    call = case.call(DEVICE, torch.Generator().manual_seed(3))
    call.keys.scales.mul_(2.0**-40)
    call.keys.window.mul_(2.0**-40)
    call.values.scales.mul_(2.0**60)
    call.values.window.mul_(2.0**60)
    call = dataclasses.replace(call, query=call.query * 2.0**30, scale=call.scale * 2.0**10)
    actual = kernels.decode_attention(call).double()
    expected = reference.decode_attention(call, torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
