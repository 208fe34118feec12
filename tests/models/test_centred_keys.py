"""Keys whose mean is far from zero: what is left out of the scores counts where there is more than a softmax."""

from __future__ import annotations

import pytest
import torch
import transformers

from innerq_compile import innerq
from tests.helpers.families import family
from tests.helpers.models import generate, prompt
from tests.helpers.without_inductor import forget_graphs

#: Families with sink logits, and with soft-capped scores.
MODELS = ["GptOssForCausalLM", "Gemma2ForCausalLM"]
#: What their configs need besides: keys with a bias, and scores of the size of the cap.
MORE = {"Gemma2ForCausalLM": {"attention_bias": True, "attn_logit_softcapping": 4.0}}


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["growing", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_program(name, options):
    if not hasattr(transformers, name):
        pytest.skip("this transformers has no such family")
    inputs, logits = prompt(2, 200, (0, 9)), []
    for rewrite in (False, True):
        forget_graphs()
        torch.manual_seed(0)
        model = family(name).build("eager", **MORE.get(name, {}))
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.data.normal_(0, 3.0)
        logits.append(generate(innerq(model, preset="base", rewrite=rewrite), inputs, 3, **options)[1][:, :2])
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4 * float(logits[0].abs().max()), rtol=0)
