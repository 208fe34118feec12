"""Tiny configurations: what distinguishes a family is still there, and sizes fit each other."""

from __future__ import annotations

import pytest
import transformers

from tests.helpers.families import Family
from tests.helpers.tiny_configs import HEAD_DIM, HEADS, WINDOW


def config_of(model: str, **fields):
    if not hasattr(transformers, model):
        pytest.skip("this transformers has no such family")
    return Family(model).config(**fields)


def test_a_layer_of_each_kind():
    config = config_of("Gemma3ForCausalLM")
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 2 and config.sliding_window == WINDOW


def test_layers_that_are_numbered():
    """``no_rope_layers`` says of each layer whether it has a rotary embedding, ``moe_layers`` counts some of them."""
    config = config_of("Llama4ForCausalLM").get_text_config()
    kinds = set(zip(config.layer_types, config.no_rope_layers, strict=True))
    assert len(kinds) == len(config.layer_types) == config.num_hidden_layers
    assert config.moe_layers == list(range(config.num_hidden_layers))


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        ("GPTNeoXForCausalLM", HEADS),
        ("LlamaForCausalLM", HEADS),
        ("MistralForCausalLM", HEADS // 2),
        ("Gemma2ForCausalLM", HEADS // 2),
    ],
)
def test_heads_are_shared_as_by_default(model, heads):
    config = config_of(model)
    assert getattr(config, "num_key_value_heads", config.num_attention_heads) == heads


def test_a_part_has_what_its_class_has_not():
    """The text of a PaliGemma has one KV head, that of a Gemma has as many as there are heads."""
    assert config_of("PaliGemmaForConditionalGeneration").text_config.num_key_value_heads == 1


def test_rotary_part_of_a_latent_attention():
    config = config_of("DeepseekV3ForCausalLM")
    assert config.qk_rope_head_dim == config.head_dim == HEAD_DIM // 2
    assert config.qk_head_dim == config.qk_nope_head_dim + config.qk_rope_head_dim


@pytest.mark.parametrize("model", ["Qwen2VLForConditionalGeneration", "Glm4vMoeForConditionalGeneration"])
def test_sections_of_a_multimodal_rotary_embedding_fill_the_rotated_half(model):
    rope = config_of(model).get_text_config().rope_parameters
    assert 2 * sum(rope["mrope_section"]) == HEAD_DIM * rope.get("partial_rotary_factor", 1)


def test_shared_caches_have_layers_that_make_them():
    config = config_of("Gemma3nForCausalLM")
    made = config.num_hidden_layers - config.num_kv_shared_layers
    assert set(config.layer_types[made:]) <= set(config.layer_types[:made])


def test_a_decoder_reads_no_later_tokens():
    assert config_of("BertLMHeadModel").is_decoder


def test_fields_of_parts_are_overridden():
    config = config_of("Qwen2VLForConditionalGeneration", text_config={"vocab_size": 99})
    assert config.text_config.vocab_size == 99 and config.text_config.num_hidden_layers == 2
