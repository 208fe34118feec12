"""The reference's key statistics, and keys that are normalized by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile.kernels import reference
from innerq_compile.kernels.formats import DTYPES
from tests.helpers.strategies import seeds


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


def test_channels_with_large_queries_are_divided_by_less():
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
            keys, start, centre=True, normalize=True, norm=norm, divisor=reference.norm_divisor(query, norm)
        )
        square = [float(query[0, 0, 0, c] ** 2 + query[0, 0, 1, c] ** 2) for c in range(8)]
        shared = [(square[c] + square[pairs[c]]) / 2 for c in range(8)]
        size = [max(s / max(shared), 2.0**-24) ** 0.125 for s in shared]
        wanted = plain[0, 0] / torch.tensor(size)
        torch.testing.assert_close(found[0, 0], wanted / wanted.max(), rtol=1e-5, atol=1e-6)
    assert torch.equal(reference.norm_divisor(torch.zeros(1, 1, 2, 8), "channel"), torch.ones(1, 1, 8))


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
