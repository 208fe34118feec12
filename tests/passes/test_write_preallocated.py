"""A quantized buffer is written where no attention was rewritten, and read dequantized."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig, empty_cache
from tests.helpers.programs import brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


def write_and_read(x, at, buffer):
    buffer.index_copy_(2, at, x)
    return buffer.sum(-1)


def write_a_part(x, start, buffer):
    buffer[:, :, start : start + x.shape[2]] = x
    return buffer[:, 0]


class TestWritePreallocated(expecttest.TestCase):
    def changes(self, program, at) -> str:
        buffer = empty_cache(1, 1, 64, 16, role="value", config=PLAIN)
        ((gm, _),) = capture(program, lambda _: (torch.randn(1, 1, 3, 16), at, buffer), config=PLAIN)
        return changes_by_pass(gm, PLAIN, read=brief_code_of)["write_preallocated"]

    def test_at_a_tensor(self):
        self.assertExpectedInline(
            self.changes(write_and_read, torch.arange(3)),
            """\
- index_copy_ = l_buffer_.index_copy_(2, l_at_, l_x_)
- sum_1 = l_buffer_.sum(-1)
+ write__default = write_(l_buffer_..., None, None, None, l_x_, l_at_)
+ dequantize_default = dequantize(l_buffer_..., None, None, 64)
+ sum_1 = dequantize_default.sum(-1)""",
        )

    def test_at_a_number(self):
        self.assertExpectedInline(
            self.changes(write_a_part, 0),
            """\
+ full = torch.full((1,), 0, dtype = torch.int64, device = device(type='cpu'))
+ write__default = write_(l_buffer_..., None, None, None, l_x_, full)
+ dequantize_default = dequantize(l_buffer_..., None, None, 64)
- getitem = l_buffer_[(slice(None, None, None), 0)]
+ getitem = dequantize_default[(slice(None, None, None), 0)]""",
        )
