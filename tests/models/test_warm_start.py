"""A process that starts again finds its graphs in Inductor's caches on disk; another config or other kernels do not."""

from __future__ import annotations

from unittest import mock

import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from innerq_compile import InnerQTensor
from innerq_compile.compiler import cached_code
from tests.helpers.stacks import Layer, Stack, always_cut


def step(q, k, v, past_k, past_v):
    keys, values = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    return F.scaled_dot_product_attention(q, keys, values), keys, values


@torch.no_grad()
def compiles(**options) -> dict[str, int]:
    """Which caches a first call hits, as in a new process: Dynamo knows nothing any more."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    past = [
        InnerQTensor.from_dense(torch.randn(1, 2, 70, 16), options.get("preset", "base"), role=role)
        for role in ("key", "value")
    ]
    torch.compile(step, backend="innerq", options=options)(*(torch.randn(1, 2, 1, 16) for _ in range(3)), *past)
    return cached()


def cached() -> dict[str, int]:
    return {name: counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass")}


HIT, MISS = {"hit": 1, "miss": 0, "bypass": 0}, {"hit": 0, "miss": 1, "bypass": 0}


def test_warm_start():
    with fresh_cache():
        assert compiles(preset="base") == MISS
        assert compiles(preset="base") == HIT
        assert compiles(preset="small") == MISS
        with mock.patch.object(cached_code, "source_key", lambda: "other sources"):
            assert compiles(preset="base") == MISS
        assert compiles(preset="base") == HIT


@torch.no_grad()
def test_regions_that_were_compiled_while_inductor_waited():
    """Each is compiled within another the first time, and found by itself the second time."""

    def compiles() -> dict[str, int]:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        torch.compile(Stack([Layer() for _ in range(4)]), backend="innerq")(torch.ones(2, 5, dtype=torch.int64))
        return cached()

    with fresh_cache(), always_cut(), torch._inductor.config.patch(compile_threads=2):
        assert compiles() == {"hit": 0, "miss": 3, "bypass": 0}
        assert compiles() == {"hit": 3, "miss": 0, "bypass": 0}
