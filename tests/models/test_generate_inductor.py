"""A few of the cases of ``test_generate_features.py``, compiled by Inductor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.generation import CASES, assert_all_rewritten, models, tokens_of
from tests.helpers.models import prompt
from tests.helpers.without_inductor import forget_graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beams", "prompt-lookup", "chunked-prefill-padded", "static"])
def test_features(name):
    forget_graphs()
    eager, compiled = models()
    if name == "static":
        options: dict[str, Any] = {"cache_implementation": "static"}
        inputs = prompt(2, 140, (0, 30))
    else:
        case = next(case for case in CASES if case.name == name)
        options, inputs = case.options, prompt(case.batch, case.tokens, case.padding)
    assert torch.equal(tokens_of(compiled, inputs, **options), tokens_of(eager, inputs, **options))
    assert_all_rewritten()
