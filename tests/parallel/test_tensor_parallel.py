"""transformers' ``tp_plan`` on two processes: each rank compiles the model of its own heads and holds their caches."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

from innerq_compile import innerq
from tests.helpers.models import assert_same_tokens, generate, prompt, tiny_llama
from tests.helpers.torchrun import Ranks

pytest.importorskip("accelerate")

RANKS, HEADS, KV_HEADS, LAYERS, NEW = 2, 8, 4, 2, 8
LOSSLESS, BASE, STATIC, ONE_HEAD, REPLICATED = range(5)
#: Whether this version of transformers has the style; 5.17 has not.
REPLICATES = "replicate" in ALL_PARALLEL_STYLES
PROJECTIONS = [f"model.layers.*.self_attn.{name}_proj" for name in "qkvo"]


def saved(folder, kv_heads: int, layers: int = LAYERS) -> str:
    # transformers 5.17 gathers logits only where the ranks divide the vocabulary
    model = tiny_llama(heads=HEADS, kv_heads=kv_heads, head_dim=32, layers=layers, vocab=64)
    model.save_pretrained(folder / f"kv{kv_heads}_{layers}")
    return str(folder / f"kv{kv_heads}_{layers}")


def single(model, inputs, options: dict, **arguments):
    """Tokens, logits and cache of one process; without options, uncompiled."""
    if options:
        innerq(model, **options)
    return generate(model, inputs, NEW, **arguments)


def run_all(folder):
    """Results of both ranks, and what one process gives for the same cases."""
    model, one_layer, one_head = saved(folder, KV_HEADS), saved(folder, KV_HEADS, 1), saved(folder, 1, 1)
    common = {"inputs": prompt(2, 210, (0, 23)), "new": NEW}
    pair = {"preset": "base", "key_norm": "pair"}  # its factors stand on the sharded projections
    static = {"cache_implementation": "static"}
    cases = [
        {"model": one_layer, "options": {"preset": "lossless"}},
        {"model": model, "options": pair},
        {"model": one_layer, "options": {"preset": "small"}, "arguments": static},
        {"model": one_head, "options": {"preset": "lossless"}},
    ]
    if REPLICATES:
        cases.append(
            {"model": one_head, "options": {"preset": "lossless"}, "plan": dict.fromkeys(PROJECTIONS, "replicate")}
        )
    ranks = Ranks([{**common, **case} for case in cases], RANKS, folder)
    expected = {}
    for index, case in enumerate(cases):
        if index != ONE_HEAD:
            options = {} if case["options"]["preset"] == "lossless" else case["options"]
            alone = AutoModelForCausalLM.from_pretrained(case["model"]).eval()
            expected[index] = single(alone, common["inputs"], options, **case.get("arguments", {}))
    return ranks.results(), expected


def tokens_are_those_of_one_process(ranks, expected):
    for rank in ranks:
        for case, (tokens, logits, _) in expected.items():
            assert_same_tokens(rank[case]["tokens"], rank[case]["logits"], tokens, logits, torch.float32)


def every_rank_holds_its_own_heads(ranks, expected):
    for rank in ranks:
        for case, layers in ((LOSSLESS, 1), (BASE, LAYERS)):
            assert rank[case]["rewritten"] == [("prefill", layers), ("decode", layers)]
            assert rank[case]["heads"] == [KV_HEADS // RANKS] * layers and all(rank[case]["quantized"])


def the_ranks_hold_together_what_one_process_holds(ranks, expected):
    whole = [layer.keys.nbytes_held + layer.values.nbytes_held for layer in expected[BASE][2].layers]
    shared = [sum(parts) for parts in zip(*(rank[BASE]["bytes"] for rank in ranks), strict=True)]
    assert shared == whole


def a_static_cache_is_read_through_its_shadow(ranks, expected):
    for rank in ranks:
        assert ("decode", 1) in rank[STATIC]["rewritten"]


def collectives_stay(ranks, expected):
    # sums behind the embedding and behind the attention and MLP of each layer; the logits are gathered
    for case, layers in ((LOSSLESS, 1), (BASE, LAYERS)):
        once = {"all_reduce": 1 + 2 * layers, "all_gather_into_tensor": 1, "wait_tensor": 2 + 2 * layers}
        assert all(rank[case]["collectives"] == [once, once] for rank in ranks)


def heads_that_the_ranks_cannot_share_are_refused(ranks, expected):
    for rank in ranks:
        assert "1 KV heads are not allowed on 2 ranks" in rank[ONE_HEAD]["error"]
        if REPLICATES:
            assert rank[REPLICATED]["heads"] == [1] and all(rank[REPLICATED]["quantized"])


@pytest.mark.usefixtures("no_inductor")
def test_two_ranks(tmp_path, subtests):
    """All checks are one test: otherwise each worker of pytest would run the ranks again."""
    found = run_all(tmp_path)
    for check in (
        tokens_are_those_of_one_process,
        every_rank_holds_its_own_heads,
        the_ranks_hold_together_what_one_process_holds,
        a_static_cache_is_read_through_its_shadow,
        collectives_stay,
        heads_that_the_ranks_cannot_share_are_refused,
    ):
        with subtests.test(check.__name__):
            check(*found)


@pytest.mark.slow
def test_compiled_by_inductor(tmp_path):
    torch._dynamo.reset()
    case = {"model": saved(tmp_path, KV_HEADS), "options": {"preset": "base"}, "inductor": True}
    case |= {"inputs": prompt(2, 210, (0, 23)), "new": NEW}
    ranks = Ranks([case], RANKS, tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(case["model"]).eval()
    tokens, logits, _ = single(alone, case["inputs"], case["options"])
    for (found,) in ranks.results():
        assert found["heads"] == [KV_HEADS // RANKS] * LAYERS and all(found["quantized"])
        assert_same_tokens(found["tokens"], found["logits"], tokens, logits, torch.float32)
