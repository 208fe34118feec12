"""Families with latent attention (MLA): a step computes nothing of the whole cache, whose parts differ in bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from innerq_compile import InnerQConfig, InnerQTensor, compiled_graphs, innerq
from tests.helpers.families import families
from tests.helpers.models import assert_same_tokens, generate, prompt
from tests.helpers.without_inductor import as_it_is, without_inductor

#: By the names of configurations.
FAMILIES = {name: family for family in families() for name in family.types if not family.variant}
NAMES = (
    *("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k25", "kimi_linear", "minicpm3", "mistral4"),
    *("sarvam_mla", "youtu", pytest.param("longcat_flash", marks=pytest.mark.slow)),
)
#: An indexer chooses the tokens that a query sees.
SPARSE = ("deepseek_v32", "glm_moe_dsa")

#: Channels of the latent, and of nothing else that is projected.
RANK = 96

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")


def build(name: str) -> Any:
    if name not in FAMILIES:
        pytest.skip("this transformers has no such family")
    own, fields = dataclasses.replace(FAMILIES[name], config_type=name), {"kv_lora_rank": RANK}
    return own.build("sdpa", **(fields if "kv_lora_rank" in vars(own.config()) else {"text_config": fields}))


def choosing(model: Any, count: int) -> Any:
    """The model, which lets a query see ``count`` tokens."""
    for module in model.modules():
        if hasattr(module, "index_topk"):
            module.index_topk = count
    return model


def caches(cache: Any) -> list[tuple[Any, Any]]:
    """The latent and the rotary key of each layer that has attention."""
    return [(layer.keys, layer.values) for layer in cache.layers if hasattr(layer, "keys")]


def assert_rewritten() -> None:
    """Each attention of prompts and steps is, in graphs of their own where routing to experts breaks a program."""
    reports = [report for report in compiled_graphs() if report.attentions]
    assert {report.kind for report in reports} == {"prefill", "decode"}
    assert all(report.rewritten == report.attentions for report in reports), [str(report) for report in reports]


def calls(gm: GraphModule, target: Any) -> list[torch.fx.Node]:
    return gm.graph.find_nodes(op="call_function", target=target)


def assert_projections_are_absorbed(graphs: list[GraphModule]) -> None:
    """The prompt's graph projects the latent to keys and values, as the program does; a step's does not."""
    found = []
    for gm in graphs:
        read = {node.args[0].meta["example_value"].shape[-1] for node in calls(gm, torch._C._nn.linear)}
        for node in (attentions := calls(gm, torch.ops.innerq.decode_attention.default)):
            assert node.args[-1].target is torch.functional.einsum, "the query that meets the latent"
        if read:
            found.append((bool(attentions), RANK in read))
    assert {(False, True), (True, False)} <= set(found) and (True, True) not in found


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NAMES)
def test_lossless(name):
    model, inputs, graphs = build(name), prompt(2, 40, (0, 7)), []

    def kept(gm, example_inputs):
        graphs.append(gm)
        return as_it_is(gm, example_inputs)

    tokens, logits, _ = generate(model, inputs, 5)
    with without_inductor(kept):
        found, found_logits, cache = generate(innerq(model, preset="lossless"), inputs, 5)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert_rewritten()
    assert caches(cache) and all(isinstance(side, InnerQTensor) for sides in caches(cache) for side in sides)
    assert_projections_are_absorbed(graphs)


@pytest.mark.parametrize("name", ["deepseek_v2", pytest.param("kimi_linear", marks=pytest.mark.slow)])
@pytest.mark.parametrize("preset", ["base", "small"])
def test_bits(name, preset):
    """Few for the latent, which has no position; the rotary key is held in 8 bits."""
    _, _, cache = generate(innerq(build(name), preset=preset), prompt(1, 200), 3)
    config = InnerQConfig.preset(preset)
    assert caches(cache)
    for latent, rotary in caches(cache):
        assert latent.shape[-1] == RANK and latent.format.bits == max(config.key_bits, config.value_bits)
        assert rotary.format.role == "key" and rotary.format.bits == 8


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("chosen", [16, 152], ids=["before the prompt ends", "while tokens are generated"])
@pytest.mark.sampled(2)
def test_tokens_that_an_indexer_chooses(name, chosen):
    """From where there are more than it may choose, a step sees those alone."""
    model, inputs = build(name), prompt(2, 150, (0, 5))
    _, of_all, _ = generate(choosing(model, 1000), inputs, 6)
    tokens, logits, _ = generate(choosing(model, chosen), inputs, 6)
    assert (logits - of_all)[:, -1].abs().max() > 1e-2, "else it is not seen whether the choice is kept"
    found, found_logits, _ = generate(innerq(model, preset="lossless"), inputs, 6)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert_rewritten()
