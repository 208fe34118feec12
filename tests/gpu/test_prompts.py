"""Attention of prompts on a GPU: against float64, with windows and padding, and what a padded batch generates."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import innerq
from innerq_compile.kernels import ops as _registered  # noqa: F401
from tests.helpers.models import tiny_llama, windowed_model
from tests.helpers.prompt_attention import by_definition

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 2e-5}


@pytest.mark.parametrize("padding", [0, 300])
@pytest.mark.parametrize("window", [None, 700, 2600])
@pytest.mark.parametrize("length", [37, 2500, 3333])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attention_of_a_prompt(dtype, has_sinks, length, window, padding):
    torch.manual_seed(0)

    def random(heads):
        return torch.randn(2, length, heads, 64, device="cuda", dtype=dtype).transpose(1, 2)

    query, key, value = random(4), random(2), random(2)
    shown = torch.arange(length, device="cuda") >= torch.tensor([[0], [min(padding, length - 1)]], device="cuda")
    flag, sinks = shown.all().cpu(), torch.randn(4, device="cuda", dtype=dtype) if has_sinks else None
    out = torch.ops.innerq.causal_attention(query, key, value, shown, flag, window, sinks, 0.125)
    wanted, seen = by_definition(query, key, value, shown, window, sinks, 0.125)
    rows = seen.expand(out.shape[:3])
    assert (out[rows].double() - wanted[rows]).abs().max() < TOLERANCE[dtype]
    assert not out.isnan().any()


@pytest.mark.parametrize("windowed", [False, True])
def test_a_padded_batch(windowed):
    model = (windowed_model("Mistral", 1500) if windowed else tiny_llama()).to("cuda")
    ids = torch.randint(2, 61, (3, 3100), device="cuda")
    mask = torch.ones_like(ids)
    mask[1, :2000], mask[2, :40] = 0, 0
    arguments = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    wanted = model.generate(ids, **arguments)
    assert torch.equal(innerq(model, preset="lossless").generate(ids, **arguments), wanted)


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 64), (torch.bfloat16, 512)], ids=str)
def test_scores_are_not_held(dtype, head_dim):
    """No fused kernel reads groups of heads in float32, or such wide ones in any dtype."""
    query, key = (torch.randn(1, heads, 8192, head_dim, device="cuda", dtype=dtype) for heads in (8, 2))
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.ops.innerq.causal_attention(query, key, key, None, None, None, None, 0.1)
    assert torch.cuda.max_memory_allocated() - held < 8 * query.nbytes
