"""Triton's rewind against the reference, in the interpreter (or on the GPU where there is one)."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.kernels import layout, reference
from innerq_compile.kernels import triton as kernels
from tests.helpers.triton_cases import assert_same_cache, clone, make_cache
from tests.helpers.triton_formats import DEVICE, FORMATS, normal

pytest.importorskip("triton")


@pytest.mark.parametrize("hidden", [0, 5, 40])
@pytest.mark.parametrize(("head_dim", "dtype", "fmt"), FORMATS[::2])
@pytest.mark.sampled(2)
def test_rewind_is_the_reference(head_dim, dtype, fmt, hidden):
    """To the end, by a token, into the quantized region, into padding, to nothing."""
    x, start = normal(2, 2, 150, head_dim, dtype=dtype), torch.tensor([0, 9], dtype=torch.int32)
    caches = [make_cache(half, fmt, start) for half in (x, x.flip(2))]
    for cache in caches:
        cache.state[..., layout.HIDDEN] = hidden
    expected = [clone(cache) for cache in caches]
    for target in (150 - hidden, 149 - hidden, 61, 8, 0):
        assert all(kernels.supports_rewind(cache) for cache in caches)
        kernels.rewind_(caches, torch.tensor([target], device=DEVICE))
        for cache, other in zip(caches, expected, strict=True):
            reference.truncate_(other, target)
            assert_same_cache(cache, other)
