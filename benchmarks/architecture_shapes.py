"""Shapes of models for ``architectures.py``, from their model cards or the defaults of transformers' config classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import transformers

_TINY_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
#: Replaces sizes with ``--tiny``; a shape adds its own.
TINY = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a model.

    Attributes:
        model: The class in transformers, without ``ForCausalLM``.
        like: The published model that has the sizes.
        sizes: Of the config, but for layers.
        tiny: What ``--tiny`` replaces besides :data:`TINY`.
        pattern: The types of layers in turn; empty if the config class needs none.
        config: The config class, if it is not called after the model.
        chunk: Tokens of a prompt that are given to the model at once, where it holds all scores, what all experts
            make of all tokens, or what a scan makes of all pairs of tokens in a block.
    """

    model: str
    like: str
    sizes: dict[str, Any]
    tiny: dict[str, Any] = dataclasses.field(default_factory=dict)
    pattern: tuple[str, ...] = ()
    config: str = ""
    chunk: int | None = None

    def types(self, layers: int) -> list[str]:
        """The types of ``layers`` layers. Of fewer than a pattern has, every second one is of the last type."""
        pattern = self.pattern if layers >= len(self.pattern) else (self.pattern[0], self.pattern[-1])
        return [pattern[index % len(pattern)] for index in range(layers)]

    def make_config(self, layers: int, positions: int, tiny: bool = False) -> Any:
        """The config of a model with so many layers, for so many tokens."""
        sizes: dict[str, Any] = {**self.sizes, "num_hidden_layers": layers}
        if tiny:
            sizes |= TINY | self.tiny
        if self.pattern:
            sizes["layer_types"] = self.types(layers)
        config = getattr(transformers, self.config or f"{self.model}Config")(
            **sizes, pad_token_id=0, bos_token_id=None, eos_token_id=None
        )
        config.max_position_embeddings = max(config.max_position_embeddings, positions)
        return config


def _dense(hidden: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }


_SLIDING, _FULL, _LINEAR = "sliding_attention", "full_attention", "linear_attention"

SHAPES = {
    "llama": Shape("Llama", "Llama 3.1 8B", _dense(4096, 14336, 32, 8, 128256)),
    "qwen3": Shape("Qwen3", "Qwen3 8B", _dense(4096, 12288, 32, 8, 151936, head_dim=128)),
    "qwen3-moe": Shape(
        "Qwen3Moe",
        "Qwen3 30B-A3B",
        _dense(
            2048, 6144, 32, 4, 151936, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768
        )
        | {"norm_topk_prob": True},
        {**_TINY_EXPERTS, "moe_intermediate_size": 64},
    ),
    "mistral": Shape(
        "Mistral", "Mistral 7B v0.1", _dense(4096, 14336, 32, 8, 32000, sliding_window=4096), {"sliding_window": 64}
    ),
    "gemma3": Shape(
        "Gemma3",
        "Gemma 3 12B",
        _dense(3840, 15360, 16, 8, 262208, head_dim=256, sliding_window=1024, query_pre_attn_scalar=256),
        {"sliding_window": 32},
        pattern=(_SLIDING,) * 5 + (_FULL,),
        config="Gemma3TextConfig",
    ),
    "gemma4": Shape(
        "Gemma4",
        "Gemma 4 31B",
        _dense(5376, 21504, 32, 16, 262144, head_dim=256, sliding_window=1024)
        | {"global_head_dim": 512, "num_global_key_value_heads": 4, "attention_k_eq_v": True}
        | {"hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0},
        {"sliding_window": 32, "global_head_dim": 64, "num_global_key_value_heads": 1},
        # the last layer has to be a full one, wherever it is in the pattern
        pattern=(_SLIDING,) * 5 + (_FULL,),
        config="Gemma4TextConfig",
    ),
    "gpt-oss": Shape(
        "GptOss",
        "gpt-oss 20B",
        _dense(2880, 2880, 64, 8, 201088, head_dim=64, sliding_window=128, num_local_experts=32, num_experts_per_tok=4),
        {"sliding_window": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
        pattern=(_SLIDING, _FULL),
        chunk=512,
    ),
    "llama4": Shape(
        "Llama4",
        "Llama 4 Scout",
        _dense(5120, 8192, 40, 8, 202048, head_dim=128, intermediate_size_mlp=16384, num_local_experts=16)
        | {"num_experts_per_tok": 1, "attention_chunk_size": 8192, "max_position_embeddings": 1 << 17},
        {"intermediate_size_mlp": 256, "num_local_experts": 4, "attention_chunk_size": 64},
        config="Llama4TextConfig",
        chunk=2048,
    ),
    "phi3": Shape(
        "Phi3",
        "Phi-3 mini 128k, with plain RoPE",
        _dense(3072, 8192, 32, 32, 32064, sliding_window=262144, max_position_embeddings=131072),
        {"num_key_value_heads": 4},
    ),
    "qwen3-next": Shape(
        "Qwen3Next",
        "Qwen3-Next 80B-A3B",
        {},  # the defaults
        {
            **_TINY_EXPERTS,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        pattern=(_LINEAR,) * 3 + (_FULL,),
    ),
    "falcon-h1": Shape(
        "FalconH1",
        "Falcon-H1 7B",
        _dense(3072, 12288, 12, 2, 130048, mamba_d_ssm=3072, mamba_n_heads=24, mamba_d_head=128, mamba_d_state=256),
        {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16},
        chunk=512,
    ),
}
