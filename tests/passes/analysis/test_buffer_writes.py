"""Writes to a buffer at an index tensor: positions are followed, masks are left to the program."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQError, clear_reports, compiled_graphs, empty_cache

pytestmark = [
    pytest.mark.usefixtures("no_inductor"),
    pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8"),
]
TOKENS = 2


def attend(query, keys, values, index, new, mask):
    keys[:, :, index] = new
    values[:, :, index] = new
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def call(program, index, quantized=False):
    """The output, and the keys behind the call; as many tokens are written as there are."""
    torch.manual_seed(0)
    shape = (1, 2, TOKENS, 32)
    if quantized:
        keys, values = (empty_cache(*shape, role=role, config="lossless") for role in ("key", "value"))
    else:
        keys, values = torch.zeros(shape), torch.zeros(shape)
    mask = torch.ones(1, 1, 1, TOKENS, dtype=torch.bool)
    with torch.no_grad():
        out = program(torch.randn(1, 2, 1, 32), keys, values, index, torch.randn(shape), mask)
    return out, keys.dequantize() if quantized else keys


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
def test_a_mask_is_not_taken_for_positions(dtype):
    """Also where there is a token for each of its elements."""
    index = torch.ones(TOKENS, dtype=dtype)
    compiled = torch.compile(attend, backend="innerq", options={"preset": "lossless"})
    clear_reports()
    for result, expected in zip(call(compiled, index), call(attend, index), strict=True):
        torch.testing.assert_close(result, expected)
    (report,) = compiled_graphs()
    assert report.rewritten == 0 and "index tensor that is not a vector of integers" in str(report.reasons[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
def test_a_mask_of_a_quantized_buffer(dtype):
    """Eager programs may use one. How many tokens it selects is not known while compiling: that is an error."""
    index = torch.ones(TOKENS, dtype=dtype)
    for result, expected in zip(call(attend, index, quantized=True), call(attend, index), strict=True):
        torch.testing.assert_close(result, expected)
    compiled = torch.compile(attend, backend="innerq", options={"preset": "lossless"})
    with pytest.raises(InnerQError, match="index tensor that is not a vector of integers"):
        call(compiled, index, quantized=True)
