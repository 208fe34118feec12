"""What requests change is as before afterwards, also if one fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from innerq_compile.ahead.unchanged import unchanged


@pytest.mark.parametrize("fails", [False, True])
def test_flags_random_numbers_and_gradients(fails):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(ValueError, match="no") if fails else torch.enable_grad(), unchanged(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        torch.rand(5)
        if fails:
            raise ValueError("no")
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled() and torch.equal(torch.rand(2), expected)


def test_a_function_has_no_flags():
    with unchanged(lambda: None):
        assert not torch.is_grad_enabled()
