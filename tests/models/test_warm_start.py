"""A process that starts again finds its graphs in Inductor's caches on disk; another config or other kernels do not."""

from __future__ import annotations

from unittest import mock

import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from innerq_compile import InnerQTensor
from innerq_compile.compiler import cached_code


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
    found = {
        name.removeprefix("autograd_cache_"): counters["aot_autograd"][name] for name in list(counters["aot_autograd"])
    }
    return {name: found.get(name, 0) for name in ("hit", "miss", "bypass")}


HIT, MISS = {"hit": 1, "miss": 0, "bypass": 0}, {"hit": 0, "miss": 1, "bypass": 0}


def test_warm_start():
    with fresh_cache():
        assert compiles(preset="base") == MISS
        assert compiles(preset="base") == HIT
        assert compiles(preset="small") == MISS
        with mock.patch.object(cached_code, "source_key", lambda: "other sources"):
            assert compiles(preset="base") == MISS
        assert compiles(preset="base") == HIT
