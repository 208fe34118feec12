"""Compiled attention over caches of wide, odd and differing head_dims, against float64 over what the caches hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs
from innerq_compile.compiler.backend import innerq_backend

pytestmark = pytest.mark.gpu

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
#: head_dim of keys and of values, dtype, largest relative error.
CASES = [
    (512, 512, BF16, 1e-2),
    (512, 256, F16, 2e-3),
    (320, 576, BF16, 1e-2),
    (576, 512, F16, 2e-3),
    (272, 272, F32, 2e-3),
    (100, 100, BF16, 1e-2),
    (36, 40, F16, 2e-3),
    (120, 500, F32, 2e-3),
]


def program(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    out = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True, is_causal=q.shape[2] > 1)
    return out, keys, values


@pytest.mark.parametrize("preset", ["lossless", "base", "tiny", "int4"])
@pytest.mark.parametrize(("head_dim", "value_dim", "dtype", "tolerance"), CASES)
def test_steps(head_dim, value_dim, dtype, tolerance, preset):
    torch._dynamo.reset()
    clear_reports()
    torch.manual_seed(0)

    def inputs(tokens: int) -> list[torch.Tensor]:
        sizes = ((8, head_dim), (2, head_dim), (2, value_dim))
        return [torch.randn(2, heads, tokens, width, device="cuda", dtype=dtype) for heads, width in sizes]

    compiled = torch.compile(program, backend=innerq_backend, options={"preset": preset})
    empty = [torch.empty(2, 2, 0, width, device="cuda", dtype=dtype) for width in (head_dim, value_dim)]
    with torch.no_grad():
        _, keys, values = compiled(*inputs(300), *empty)
        assert type(keys) is InnerQTensor
        for _ in range(40):
            q, *new = inputs(1)
            out, keys, values = compiled(q, *new, keys, values)
            held = [cache.dequantize().double() for cache in (keys, values)]
            wanted = F.scaled_dot_product_attention(q.double(), *held, enable_gqa=True)
            assert (out.double() - wanted).norm() < tolerance * wanted.norm()
    (decode,) = [graph for graph in compiled_graphs() if graph.kind == "decode"]
    assert decode.rewritten == 1 and decode.recorded > 0
