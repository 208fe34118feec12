"""mode="reduce-overhead" with transformers' default cache: one recorded graph serves all lengths."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from innerq_compile import InnerQTensor, innerq

from ..models.helpers import assert_same_tokens, generate, prompt, tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def recordings() -> int:
    """How many CUDA graphs have been recorded on this device."""
    from torch._inductor.cudagraph_trees import get_manager

    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    return 0 if manager is None else _count(manager)


def _count(manager) -> int:
    pending, count = [root for roots in manager.roots.values() for root in roots], 0
    while pending:
        node = pending.pop()
        count += 1
        pending += [child for children in node.children.values() for child in children]
    return count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch,padding", [(1, ()), (2, (0, 41))], ids=["B1", "B2-padded"])
def test_generate(dtype, batch, padding):
    torch._dynamo.reset()
    counters.clear()
    model = tiny_llama(layers=2, dtype=dtype).cuda()
    inputs = prompt(batch, 150, padding, device="cuda")
    expected_tokens, expected, _ = generate(model, inputs, 120)
    innerq(model, preset="lossless", mode="reduce-overhead")
    recorded = recordings()
    for _ in range(2):
        tokens, logits, past = generate(model, inputs, 120)
        assert_same_tokens(tokens, logits, expected_tokens, expected, dtype)
        assert isinstance(past.layers[0].keys, InnerQTensor)
        assert recordings() - recorded <= 2, "one graph for all lengths, and one more where the storage grows"
        recorded = recordings()
    assert counters["inductor"]["cudagraph_skips"] == 0
    model._compiled_call_impl = None
