"""The formats of the tests of the CPU kernels."""

from __future__ import annotations

import pytest

from innerq_compile.kernels import cpu
from tests.helpers.cpu_cases import PAIRS, ROLLING


@pytest.fixture(scope="module")
def compiled_formats():
    """Compile each of them at once, which is faster than one by one."""
    cpu.compile_formats([], [*PAIRS.values(), *ROLLING.values()])


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def formats(request):
    """A pair of formats, with head_dims and dtype, as ``pair`` of ``cpu_cases`` gives it."""
    return request.param
