"""Hypothesis strategies for cache formats, and small helpers that the kernel tests share."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import strategies as st

from innerq_compile.kernels import modes
from innerq_compile.kernels.formats import DTYPES, GROUP_SIZES, CacheFormat
from innerq_compile.kernels.modes import MODES

#: Multiples of the 16 lanes; 80, 96, 112 and 272 are those whose slices do not fill the sixteen fields evenly.
HEAD_DIMS = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 272)
CONFIG_MODES = tuple(name for name, mode in MODES.items() if not mode.rolls)
QUANTIZED_MODES = tuple(name for name, mode in MODES.items() if mode.stores_codes)
SCALE_NAMES = dict.fromkeys(DTYPES, "bfloat16") | {torch.float16: "float16"}

seeds = st.integers(0, 2**31 - 1)


def make_format(
    role="key", bits=3, mode="signed", group_size=32, sink=32, recent=96, dtype=torch.float16, scale_dtype=None
) -> CacheFormat:
    if scale_dtype is None:
        allowed = modes.named(mode).scale_types
        scale_dtype = SCALE_NAMES[dtype] if SCALE_NAMES[dtype] in allowed else allowed[0]
    return CacheFormat(role, bits, mode, group_size, sink, recent, scale_dtype)


def mode_of(role: str, mode: str) -> str:
    """``mode`` where caches of this role have it, else ``asymmetric``."""
    return mode if role in modes.named(mode).roles else "asymmetric"


@st.composite
def formats(draw, head_dim: int, roles=("key", "value"), names=CONFIG_MODES, max_window: int = 96, dtype=torch.float16):
    """Any format that fits a head of ``head_dim`` channels."""
    role = draw(st.sampled_from(roles))
    mode = draw(st.sampled_from([name for name in names if role in modes.named(name).roles]))
    of_mode = modes.named(mode).scale_types if mode in QUANTIZED_MODES else ()
    short = [name for name in ("float8_e5m2", "pair8") if name in of_mode]
    sizes = [size for size in GROUP_SIZES if role == "value" or head_dim % size == 0]
    return make_format(
        role,
        draw(st.integers(2, 8)),
        mode,
        draw(st.sampled_from(sizes)),
        draw(st.sampled_from([0, 1, 4, 32])),
        draw(st.integers(0, max_window)),
        dtype,
        draw(st.sampled_from([None, *short])),
    )


@st.composite
def with_rolling(draw, formats):
    """Formats of a strategy; some are changed to those that keep a short window."""
    fmt = draw(formats)
    if not draw(st.booleans()):
        return fmt
    scale_dtype = fmt.scale_dtype if fmt.scale_dtype in modes.named("rolling").scale_types else "float16"
    return dataclasses.replace(fmt, mode="rolling", sink=0, scale_dtype=scale_dtype)


def bits_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same shape, dtype and bits, whichever NaN it is."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype, f"{a.dtype} {tuple(a.shape)} is not {b.dtype} {tuple(b.shape)}"
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def pair(
    k_bits=3,
    v_bits=3,
    k_mode="signed",
    v_mode="signed",
    dtype=torch.float16,
    *,
    group=32,
    v_group=32,
    sink=4,
    recent=20,
    v_sink=None,
    v_recent=None,
    scale=None,
):
    """Formats of a key and a value cache, and their dtype."""
    v_sink, v_recent = sink if v_sink is None else v_sink, recent if v_recent is None else v_recent
    key = make_format("key", k_bits, k_mode, group, sink, recent, dtype, scale)
    value = make_format("value", v_bits, v_mode, v_group, v_sink, v_recent, dtype, scale)
    return {"k_fmt": key, "v_fmt": value, "dtype": dtype}
