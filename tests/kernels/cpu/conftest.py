"""The formats of the tests of the CPU kernels."""

from __future__ import annotations

import pytest

from innerq_compile.kernels import cpu
from innerq_compile.kernels.cpu import build, compiled
from tests.helpers.cpu_cases import PAIRS, ROLLING


@pytest.fixture(scope="module", autouse=True)
def optimized_as_in_the_product():
    """What other tests have compiled with less optimization is compiled anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", tuple(flag for flag in build.FLAGS if not flag.startswith("-O")))
        for table in ("_sides", "_pairs", "_compiled_sides", "_compiled_pairs"):
            patch.setattr(compiled, table, {})
        yield


@pytest.fixture(scope="module")
def compiled_formats(optimized_as_in_the_product):
    """Compile each of them at once, which is faster than one by one."""
    cpu.compile_formats([], [*PAIRS.values(), *ROLLING.values()])


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def formats(request):
    """A pair of formats, with head_dims and dtype, as ``pair`` of ``cpu_cases`` gives it."""
    return request.param
