"""Programs in float64 on a GPU: plain torch attends over their caches, in steps that are recorded or not.

What they compute is tested in ``tests/models/test_float64.py``, without a GPU.
"""

from __future__ import annotations

import pytest
import torch

from innerq_compile import clear_reports, compiled_graphs, innerq
from tests.helpers.decoders import VOCAB, GPTFast, LatentDecoder, NanoGPT, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

#: Tokens of the sinks and the recent window of ``base``.
EXACT = 32 + 96


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    clear_reports()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("preset", "tokens"), [("lossless", 150), ("base", EXACT - 40)])
@pytest.mark.parametrize("program", [NanoGPT, LatentDecoder, GPTFast], ids=lambda program: program.__name__)
def test_what_is_not_quantized_is_exact(program, preset, tokens):
    with torch.device("cuda"):
        model, ids = program(batch=2).eval().double(), torch.randint(0, VOCAB, (2, tokens))
        expected = run(model, ids, 40)
        innerq(model, preset=preset)
        found = run(model, ids, 40)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    steps = [report for report in compiled_graphs() if report.kind == "decode"]
    assert steps and all(report.rewritten == report.attentions > 0 for report in steps)
    kernels = {str(layer.kernel) for report in steps for layer in report.layers}
    assert kernels == {"reference: kernels compute in float32, so plain torch serves float64"}
