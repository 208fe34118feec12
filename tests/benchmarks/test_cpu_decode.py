"""The benchmark of a decode step on a CPU runs in every mode that keys can have."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.scripts import script

cpu_decode = script("benchmarks/cpu_decode")


@pytest.mark.usefixtures("plain_torch")
@pytest.mark.parametrize("mode", ["signed", "steered"])
def test_a_measurement(mode):
    times = cpu_decode.measure(200, torch.float32, mode, 3, layers=1, steps=1, lowest=True)
    assert times and all(time > 0 for time in times.values())
