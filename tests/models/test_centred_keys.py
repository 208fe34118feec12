"""Keys whose mean is far from zero: what is left out of the scores counts where they meet something else than keys."""

from __future__ import annotations

import pytest
import torch
import transformers

from innerq_compile import innerq
from tests.helpers.families import FAMILIES
from tests.helpers.models import generate, prompt

SINKS = "GptOssForCausalLM"


@pytest.mark.skipif(not hasattr(transformers, SINKS), reason="this transformers has no such family")
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["growing", "static"])
def test_sink_logits_meet_the_scores_of_the_program(options):
    (family,) = [family for family in FAMILIES if family.model == SINKS]
    inputs, logits = prompt(2, 200, (0, 9)), []
    for rewrite in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = family.build("eager")
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.data.normal_(0, 3.0)
        logits.append(generate(innerq(model, preset="base", rewrite=rewrite), inputs, 3, **options)[1][:, :2])
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4 * float(logits[0].abs().max()), rtol=0)
