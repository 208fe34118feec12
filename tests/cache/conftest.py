"""Fixtures of the tests of caches."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQTensor
from tests.helpers.small_caches import lossless, random_cache


@pytest.fixture
def past() -> tuple[InnerQTensor, torch.Tensor]:
    """A lossless cache of 100 tokens, and the dense tensor that it holds."""
    dense = random_cache(100)
    return lossless(dense), dense
