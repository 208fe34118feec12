"""What the names of fields do not tell of a family, and variants of families that have another attention.

Each entry is a field that a family has no default for, or whose default needs another to fit.
"""

from __future__ import annotations

from typing import Any

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_COMPASS = {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}
_INDEXER = {
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
}
_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]

#: Fields of the configuration of a class.
OVERRIDES: dict[str, dict[str, Any]] = {
    "Apertus1p5ForConditionalGeneration": {"text_config": {"vocab_size": 266_440}},
    "BambaForCausalLM": {"attn_layer_indices": [1]},
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 60}},
    "CohereCompassForCausalLM": _COMPASS,
    "CohereCompassForConditionalGeneration": {"text_config": _COMPASS},
    "DbrxForCausalLM": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "DeepseekOcr2ForConditionalGeneration": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "DiffusionGemmaForBlockDiffusion": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
    },
    "Dots3NoteForCausalLM": {"head_dim": 32},
    "Dots3NoteForConditionalGeneration": {"text_config": {"head_dim": 32}},
    "DoryForCausalLM": {
        **{"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
        **{"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    },
    "Emu3ForConditionalGeneration": {"vocabulary_map": {"<image>": 60}},
    "Granite4VisionForConditionalGeneration": {"deepstack_layer_map": [], "downsample_rate": "4/8"},
    "FunAsrNanoForConditionalGeneration": {"adaptor_config": {"intermediate_size": 16}},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"]},
    "HrmTextForCausalLM": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Molmo2ForConditionalGeneration": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "NemotronH_Omni_Reasoning_V3": {"vision_config": {"video_temporal_patch_size": 2}},
    "Qwen2_5OmniThinkerForConditionalGeneration": {"vision_start_token_id": 200_000},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {"vision_start_token_id": 200_000},
    "Qwen4ExpForCausalLM": _INDEXER,
    "Qwen4ExpForConditionalGeneration": {"text_config": _INDEXER},
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3},
    "ReformerModelWithLMHead": {"axial_pos_embds": False},
    "Step3p7ForConditionalGeneration": {"text_config": {"sliding_window": 16}},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "ZambaForCausalLM": {
        **{"num_hidden_layers": 4, "layers_block_type": _HYBRID, "attn_layer_period": 2, "attn_layer_offset": 1},
        **{"mamba_expand": 2, "attention_hidden_size": 128, "attention_head_dim": 32},
    },
    "Zamba2ForCausalLM": {
        **{"num_hidden_layers": 4, "layers_block_type": _HYBRID, "hybrid_layer_ids": [1, 3]},
        **{"mamba_expand": 2, "mamba_headdim": 32, "attention_hidden_size": 128, "attention_head_dim": 32},
    },
}

#: Classes with a part that has no sdpa, though they themselves have.
WITHOUT_SDPA = {"Apertus1p5ForConditionalGeneration", "VibeVoiceAsrForConditionalGeneration"}

#: Classes that take an image for granted. GIT's steps count the tokens of one in any case, and read padding without it.
WITH_IMAGE = {"GitForCausalLM"}

#: Classes whose ``generate`` itself says which tokens are padding and end.
WITH_OWN_TOKENS = {"BlipForConditionalGeneration"}

#: Class, what the variant is, and its fields.
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("FalconForCausalLM", "ALiBi", {"alibi": True, "multi_query": False, "new_decoder_architecture": False}),
    ("MistralForCausalLM", "window of 4096", {"sliding_window": 4096}),
)

#: Peculiarities, and families that have them.
NOTES: dict[str, tuple[str, ...]] = {
    "mixture of experts": ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM"),
    "one KV head": ("GemmaForCausalLM", "FalconForCausalLM"),
    "normalized queries and keys": ("Qwen3ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM"),
    "soft-capped scores": ("Gemma2ForCausalLM",),
    "a window of over 1,024 tokens is quantized, shorter ones are held exactly, in place": (
        "MistralForCausalLM, window of 4096",
    ),
    "rotary embedding on a part of head_dim": ("PhiForCausalLM", "GPTNeoXForCausalLM", "StableLmForCausalLM"),
    "layers without rotary embedding": ("SmolLM3ForCausalLM",),
    "fused queries, keys and values": ("Phi3ForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM"),
    "ALiBi": ("FalconForCausalLM, ALiBi", "MptForCausalLM", "BloomForCausalLM"),
    "a scale of its own": ("GraniteForCausalLM",),
    "sink logits": ("GptOssForCausalLM",),
    "sink logits as a gate on the output": ("GraniteSWAForCausalLM",),
    "sink logits of each token of the query, biases by distance": ("Inkling2ForCausalLM",),
    "latent attention (MLA): a latent and a rotary key are cached, and read by all heads": (
        "DeepseekV3ForCausalLM",
        "MiniCPM3ForCausalLM",
    ),
    "weights are masked again behind the softmax": ("CpmAntForCausalLM",),
}
