"""Attention of prompts on a GPU: against float64, with windows and padding, and what a padded batch generates."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import innerq
from innerq_compile.kernels import ops as _registered  # noqa: F401
from tests.helpers.models import tiny_llama, windowed_model

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 2e-5}


def by_definition(query, key, value, shown, window, scale):
    """The output in float64, and which rows see any key at all; a head at a time, whose scores fit."""
    length, groups = key.shape[2], query.shape[1] // key.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    seen = seen[None] & shown[:, None]
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head].double() @ key[:, head // groups].double().mT * scale
        heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[:, head // groups].double())
    return torch.stack(heads, 1), seen.any(-1)


@pytest.mark.parametrize("padding", [0, 300])
@pytest.mark.parametrize("window", [None, 700, 2600])
@pytest.mark.parametrize("length", [37, 2500, 3333])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attention_of_a_prompt(dtype, length, window, padding):
    torch.manual_seed(0)

    def random(heads):
        return torch.randn(2, length, heads, 64, device="cuda", dtype=dtype).transpose(1, 2)

    query, key, value = random(4), random(2), random(2)
    shown = torch.arange(length, device="cuda") >= torch.tensor([[0], [min(padding, length - 1)]], device="cuda")
    flag = shown.all().cpu()
    out = torch.ops.innerq.causal_attention(query, key, value, shown, flag, window, 0.125)
    wanted, seen = by_definition(query, key, value, shown, window, 0.125)
    rows = seen[:, None].expand(out.shape[:3])
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
