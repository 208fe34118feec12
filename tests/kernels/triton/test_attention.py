"""Triton decode attention against the reference in float64, in the interpreter (or on the GPU where there is one)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.helpers.strategies import pair
from tests.helpers.triton_cases import Attention

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
    Attention(**pair(), room=40),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_attention_is_the_reference(case):
    case.check(DEVICE, torch.Generator().manual_seed(1), splits=3)


@pytest.mark.parametrize("splits", [None, 1, 2, 17])
def test_any_number_of_splits(splits):
    """More splits than tiles of tokens leave some empty."""
    Attention(**pair(), tokens=150, padded=True).check(
        DEVICE, torch.Generator().manual_seed(2), repeat=True, splits=splits
    )


@pytest.mark.parametrize("fields", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_partial_results_do_not_grow_with_the_context(fields, head_dim, monkeypatch):
    """They are bounded by the device, or twice the rows of the output, whichever is more."""
    from innerq_compile.kernels.triton import attention

    monkeypatch.setattr(attention, "_multiprocessors", lambda device: 132)
    for sequences in (1, 8, 32, 256):
        for rows in (1, 4, 8, 16, 17, 64, 68, 512, 4096, 16384, 65536):
            config = attention.choose_config(sequences, rows, head_dim, head_dim)
            for tokens in (128, 4096, 131072, 1 << 22):
                tiling = attention.choose_tiling(torch.device("cuda"), fields, sequences, rows, tokens, config, None)
                assert tiling.rows * tiling.row_tiles >= rows
                parts, programs = tiling.splits * sequences * rows, config.programs if fields else 4
                assert parts <= max(132 * programs * tiling.rows, 2 * sequences * rows, 3 * 64 * 16)
    assert parts == (2 if fields else 1) * sequences * rows  # many rows: one share, and one of the windows


def test_huge_numbers_keep_their_range():
    """A bfloat16 query and keys beyond the range of float16 give what the reference gives."""
    case = Attention(**pair(4, 4, dtype=BF16))
    call = case.call(DEVICE, torch.Generator().manual_seed(3))
    from innerq_compile.kernels import reference, triton

    call.keys.scales.mul_(2.0**-40)
    call.keys.window.mul_(2.0**-40)
    call.values.scales.mul_(2.0**60)
    call.values.window.mul_(2.0**60)
    call = dataclasses.replace(call, query=call.query * 2.0**30, scale=call.scale * 2.0**10)
    actual = triton.decode_attention(call).double()
    expected = reference.decode_attention(call, torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
