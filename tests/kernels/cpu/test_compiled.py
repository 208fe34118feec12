"""The compiled functions: that operators use them, a toolchain that fails, vectors of other widths."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.kernels import cpu, layout, reference
from innerq_compile.kernels import ops as _ops  # noqa: F401  (defines the innerq:: operators)
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.cpu import build, compiled
from tests.helpers.cpu_cases import (
    BASE,
    F32,
    PAIRS,
    assert_attends,
    assert_same,
    make_caches,
    pair,
    randn,
)

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="no C++ compiler, or INNERQ_CPU_KERNELS=0"),
    pytest.mark.usefixtures("compiled_formats"),
]


def test_operators_use_the_kernels(monkeypatch):
    used = []
    for name in ("append_", "decode_attention", "prefill"):
        original = getattr(cpu, name)

        def counted(*args, original=original, name=name, **kwargs):
            used.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(cpu, name, counted)
    k_fmt, v_fmt, *_ = BASE
    x, start = randn(1, 2, 100, 64), torch.zeros(1, dtype=torch.int32)
    profile = reference.default_profile(k_fmt, x)
    keys = torch.ops.innerq.prefill(x, start, None, None, 4, k_fmt.spec, profile)
    values = torch.ops.innerq.prefill(x, start, None, None, 4, v_fmt.spec)
    torch.ops.innerq.append_(*keys, profile, *values, x[:, :, :1], x[:, :, :1], k_fmt.spec, v_fmt.spec, 1)
    torch.ops.innerq.append_one_(*keys, profile, x[:, :, :1], k_fmt.spec)
    assert keys[-1][0, 0].tolist() == [0, 102, 102, 1]
    torch.ops.innerq.decode_attention(
        x[:, :, :1], *keys, *values, None, None, None, 0.1, 0.0, False, k_fmt.spec, v_fmt.spec
    )
    assert used == ["prefill", "prefill", "append_", "append_", "decode_attention"]


def test_a_toolchain_that_fails_costs_speed_only(monkeypatch, caplog):
    def fail(source):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(build, "load", fail)
    # another test may have compiled the same formats
    for table in ("_sides", "_pairs", "_compiled_sides", "_compiled_pairs"):
        monkeypatch.setattr(compiled, table, {})
    formats = pair((3, "signed", 32), (3, "signed", 32), 32, 32, F32, "bfloat16")
    (k_cache, v_cache), new = make_caches(formats, [100]), randn(1, 2, 1, 32)
    assert not cpu.supports_decode(AttentionCall(new, k_cache, v_cache, None, None, None, 0.1))
    assert not cpu.supports_prefill(formats[0], new)
    cpu.append_(((k_cache, new), (v_cache, new)))
    assert k_cache.state[0, 0, layout.LENGTH] == 101
    assert "no such compiler" in caplog.text


@pytest.mark.parametrize("lanes", [4, 8])
def test_narrower_vectors(lanes, monkeypatch):
    """The code for machines with narrower vectors than this one's."""
    for table in ("_sides", "_pairs", "_compiled_sides", "_compiled_pairs"):
        monkeypatch.setattr(compiled, table, {})
    monkeypatch.setattr(build, "lanes", lambda: lanes)
    chosen = [PAIRS["base-D64-f32"], PAIRS["2bit-hybrid-D80-f16"]]
    cpu.compile_formats([], chosen)
    for formats in chosen:
        *fmts, head_dim, _, dtype = formats
        x, start = randn(2, 2, 333, head_dim, dtype=dtype), torch.tensor([0, 50], dtype=torch.int32)
        caches = [cpu.prefill(x, start, None, None, 12, fmt) for fmt in fmts]
        for cache, fmt in zip(caches, fmts, strict=True):
            assert_same(cache, reference.prefill(x, start, None, None, 12, fmt))
        mask = torch.rand(2, 1, 2, 333) < 0.8
        assert_attends(formats, caches, randn(2, 6, 2, head_dim, dtype=dtype), causal=True, mask=mask, softcap=20.0)
