"""The C++ that is made of a format."""

from __future__ import annotations

import pytest

from innerq_compile.kernels import layout
from innerq_compile.kernels.cpu import codegen


@pytest.mark.parametrize("bits", range(2, 9))
def test_runs_of_a_field_are_its_bits(bits):
    for places, runs in zip(layout.field_bits(bits), codegen.field_runs(bits), strict=True):
        bits_of_runs = [(half, half_bit + i) for half, half_bit, _, mask in runs for i in range(mask.bit_length())]
        assert bits_of_runs == list(places)
