"""InnerQTensors in programs that other backends compile: they work, or the error names the right one."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQError, InnerQTensor
from tests.helpers.small_caches import (
    assert_equal,
    lossless,
    random_cache,
)

pytestmark = pytest.mark.usefixtures("plain_torch")


def step(past, new):
    keys = torch.cat([past, new], dim=2)
    return keys, (keys * 2).sum((0, 1, 3))


def append_only(past, new):
    return torch.cat([past, new], dim=2)


@pytest.mark.usefixtures("fresh_dynamo")
def test_backend_eager_works():
    dense, new = random_cache(60), random_cache(40)
    keys, total = torch.compile(step, backend="eager")(lossless(dense), new)
    expected = torch.cat([dense, new], dim=2)
    assert isinstance(keys, InnerQTensor)
    assert_equal(keys, expected)
    assert_equal(total, (expected * 2).sum((0, 1, 3)))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("program", [step, append_only], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore:InnerQTensor does not implement _stable_hash_for_caching")
def test_other_compilers_raise_and_name_the_right_one(backend, program):
    past = lossless(random_cache(60))
    before = past.dequantize()
    with pytest.raises(InnerQError, match="backend='innerq'"):
        result = torch.compile(program, backend=backend)(past, random_cache(40))
        result.sum()  # some backends fail only when the result is read
    assert_equal(past, before)
