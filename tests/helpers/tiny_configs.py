"""Tiny configurations of any model of transformers, made from the names of their fields.

A configuration with its defaults says what a family looks like. Every number in it whose name is known becomes small:
widths, heads, layers, experts, windows. Of layers of several kinds, one of each is left. Nothing here knows a family.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

VOCAB = 61
WIDTH = 64
HEADS = 4
HEAD_DIM = 16
WINDOW = 16
POSITIONS = 256

#: The first pattern that a field's whole name matches gives its number. A function gets the default.
_NUMBERS: tuple[tuple[str, Any], ...] = (
    (r"(?:.*_)?vocab_size(?:_.*)?|.*_vocab|embedding_vocab_size", VOCAB),
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"eos_token_id", 2),
    (r"forced_.*_token_id", None),
    (r"blank_token_id", 3),
    (r"num_codebooks", 1),
    # layers
    (r"num_feat_extract_layers", lambda default: default),  # convolutions with lists of kernels and strides
    (r"n_layers_per_.*", 1),
    (r"first_k_dense_replace|num_dense_layers|.*layer_start_index|.*_layer_index_start", lambda d: min(d, 1)),
    (r".*layer_end_index|.*_layer_index_end", 1),
    (r".*_(?:period|interval|every_n_layers|frequency|sparse_step)", lambda default: min(default, 2)),
    (r".*(?:layer|layers)_offset", lambda default: min(default, 1)),
    (r"(?:.*_)?(?:n|num)_(?:.*_)?(?:layer|layers)(?:_per_stack)?|(?:.*_)?(?:encoder|decoder)_layers|layers", 2),
    (r"depth|.*_depth|num_blocks", 2),
    # attention
    (r"qk_head_dim", HEAD_DIM + HEAD_DIM // 2),
    (r"qk_rope_head_dim|rotary_dim", lambda default: min(default, HEAD_DIM // 2)),
    (r"(?:.*_)?(?:head_dim|head_size|d_kv|dim_head|d_head|kv_channels|headdim|head_features)", HEAD_DIM),
    (r"query_pre_attn_scalar", 24),
    (r"(?:.*_)?(?:sliding_window|sliding_window_size|attention_window_size|local_attention|attention_window)", WINDOW),
    (r"keep_window_size|index_topk|attention_chunk_size", WINDOW),
    (r"(?:.*_)?(?:n|num)_(?:linear_)?(?:key_heads|k_heads)|linear_num_key_heads", 2),
    (r"(?:.*_)?(?:attention_heads|n_heads?|num_heads|num_attention_heads|num_value_heads|mamba_heads)", HEADS),
    (r".*_(?:n_heads|heads)", HEADS),
    # experts
    (r"(?:.*_)?(?:num_experts|num_local_experts|n_routed_experts|num_routed_experts|zero_expert_num)", 4),
    (r"(?:.*_)?(?:num_experts_per_tok(?:en)?|topk|top_k|moe_k|top_k_experts)", lambda default: min(default, 2)),
    (r"n_group|num_expert_group", lambda default: min(default, 2)),
    (r"topk_group", 1),
    (r"(?:.*_)?n(?:um)?_shared_experts", lambda default: min(default, 1)),
    # states
    (r"(?:.*_)?(?:d_state|state_size)", HEAD_DIM),
    (r"(?:mamba_)?expand", 1),
    (r"(?:mamba_)?(?:n_groups|ngroups)", 1),
    (r"mamba_d_ssm", WIDTH),
    (r"(?:.*_)?(?:dt_rank|time_step_rank)", 4),
    (r"(?:mamba_)?chunk_size", 8),
    (r"num_filters", 4),
    (r"base_channels", 32),
    (r".*_iters", 2),
    # widths
    (r"q_lora_rank", 32),
    (r"(?:.*_)?(?:rank|lowrank)", HEAD_DIM),
    (r"(?:.*_)?(?:hidden_size|hidden_dim|intermediate_size)(?:_.*)?", WIDTH),
    (r"d_model|d_ff|dff|dim_ff|n_embd|n_inner|d_inner", WIDTH),
    (r"(?:.*_)?(?:embed_dim|emb_dim|embedding_size|embedding_dim|ffn_dim|ffn_size|mlp_dim|proj_dim|width)", WIDTH),
    (r"(?:.*_)?(?:projection_dim|output_dim|out_dim|input_dim|in_dim|mid_dim|expert_dim)", WIDTH),
    (r"dim_model_base|codebook_dim", WIDTH),
    (r"feed_forward_size|adapter_input_size|projection_size|.*_proj_size", WIDTH),
    (r"(?:.*_)?(?:max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_length)", POSITIONS),
    (r"max_(?:source|target)_positions|max_(?:encoder|decoder)_position_embeddings|model_max_length", POSITIONS),
)
_RULES = tuple((re.compile(pattern), number) for pattern, number in _NUMBERS)
#: What has to be there, where a default leaves it out.
_NOT_NONE = {"num_key_value_heads": HEADS, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
#: Fields of configurations that know images.
_IMAGES = {"vision_start_token_id", "video_token_id", "vision_config", "image_token_id"}
_HEADS = re.compile(r"(?:.*_)?(?:num_attention_heads|n_heads?|num_heads|attention_heads)")
_KV_HEADS = re.compile(r"(?:.*_)?(?:num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups|num_kv_head)")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "decoder_layers")
#: Lists of the layers that have something, where others of the same length say something of each layer.
_LAYER_NUMBERS = re.compile(r".*(?:layers|idxs?|ids|indexes|indices)")


def tiny(config: Any, multimodal: bool = False, **overrides: Any) -> Any:
    """A small configuration like ``config``, which has its defaults; sub-configurations are small as well.

    Args:
        config: of transformers.
        multimodal: it is a part of one that knows images or videos.
        overrides: fields that are to be so; a dict for fields of a sub-configuration.
    """
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    layers = _layers(fields)
    multimodal = multimodal or not _IMAGES.isdisjoint(fields)
    given = getattr(config, "__dataclass_fields__", {})  # a part may have other values than its class
    small: dict[str, Any] = {}
    for name, value in fields.items():
        override = overrides.pop(name, None)
        if _is_config(value) and (override is None or isinstance(override, dict)):
            small[name] = tiny(value, multimodal, **(override or {}))
        elif override is not None:
            small[name] = override
        else:
            found = _small(name, value, fields, layers, multimodal)
            if found is not value or name in given:
                small[name] = found
    if of_layers := _of_single_layers(config, fields, small, layers):
        small["per_layer_config"] = of_layers
    return type(config)(**small, **overrides)


def _is_config(value: Any) -> bool:
    return hasattr(value, "to_diff_dict") and hasattr(value, "model_type")


def _small(name: str, value: Any, fields: dict[str, Any], layers: Sequence[int], multimodal: bool) -> Any:
    if isinstance(value, dict) and "rope" in name:
        return _small_rotary(value, fields, multimodal)
    if isinstance(value, list | tuple):
        return _of_layers(name, value, fields, layers)
    if name == "head_dim":
        return _head_dim(fields)
    if name == "use_cache":
        return True
    if value is None:
        return _NOT_NONE.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name in _LAYER_COUNTS and layers:
        return len(layers)
    if name == "num_kv_shared_layers":
        return len(layers) // 2 if value else 0
    if _KV_HEADS.fullmatch(name):
        return _kv_heads(value, [fields[other] for other in fields if _HEADS.fullmatch(other)])
    for pattern, number in _RULES:
        if pattern.fullmatch(name):
            return number(value) if callable(number) else number
    return value


def _kv_heads(default: int, heads: Sequence[Any]) -> int:
    """As many as there are heads, one, or half as many, as it is with the defaults."""
    return HEADS if default in heads else 1 if default == 1 else HEADS // 2


def _head_dim(fields: dict[str, Any]) -> int:
    """Where there is a rotary part, some families name its size so as well."""
    rotary = fields.get("qk_rope_head_dim")
    return HEAD_DIM // 2 if rotary and fields["head_dim"] in (rotary, None) else HEAD_DIM


def _small_rotary(value: dict[str, Any], fields: dict[str, Any], multimodal: bool) -> dict[str, Any]:
    """Multimodal rotary embeddings share the rotated half of a head among dimensions; families have defaults for it."""
    small: dict[str, Any] = {
        name: _small_rotary(item, fields, multimodal) if isinstance(item, dict) else item
        for name, item in value.items()
    }
    if "mrope_section" in small or (multimodal and "rope_type" in small):
        dim = HEAD_DIM // 2 if fields.get("qk_rope_head_dim") else HEAD_DIM
        half = int(dim * (small.get("partial_rotary_factor") or 1)) // 2
        part = (half + 1) // 3
        small["mrope_section"] = [part, part, half - 2 * part]
    return small


# --- layers ---------------------------------------------------------------------------------------------------------


def _layer_count(fields: dict[str, Any]) -> int:
    lists = [len(value) for name, value in fields.items() if name in ("layer_types", "layers_block_type") and value]
    return next((fields[name] for name in _LAYER_COUNTS if isinstance(fields.get(name), int)), max(lists, default=0))


def _is_of_each(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and count > 1 and len(value) == count and list(value) != list(range(count))


def _is_numbers(name: str, value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and _LAYER_NUMBERS.fullmatch(name) is not None
        and all(isinstance(item, int) and 0 <= item < count for item in value)
        and not _is_of_each(value, count)
    )


def _layers(fields: dict[str, Any]) -> list[int]:
    """Numbers of layers that show each kind, at least two."""
    count = _layer_count(fields)
    if not count:
        return []
    of_each = [value for value in fields.values() if _is_of_each(value, count)]
    numbers = [value for name, value in fields.items() if _is_numbers(name, value, count)]
    kinds: dict[str, int] = {}
    for layer in range(count):
        kinds.setdefault(repr([value[layer] for value in of_each] + [layer in value for value in numbers]), layer)
    found = sorted(kinds.values())
    if len(found) == 1 and count > 1:
        found = [0, 1]
    return found * 2 if fields.get("num_kv_shared_layers") else found


def _of_layers(
    name: str, value: list[Any] | tuple[Any, ...], fields: dict[str, Any], layers: Sequence[int]
) -> Sequence[Any]:
    count = _layer_count(fields)
    if _is_of_each(value, count):
        found = [value[layer] for layer in layers]
    elif _is_numbers(name, value, count):
        found = [index for index, layer in enumerate(layers) if layer in value]
    else:
        return value
    return tuple(found) if isinstance(value, tuple) else found


def _of_single_layers(
    config: Any, fields: dict[str, Any], small: dict[str, Any], layers: Sequence[int]
) -> dict[int, dict[str, int]]:
    """Numbers of single layers that differ from those of the others, as much larger or smaller as by default."""
    spec = getattr(config, "_heterogeneity_spec", None)
    differing = spec.per_layer_overrides if spec is not None else {}
    return {
        index: {
            name: small[name] * value // fields[name] if isinstance(small.get(name), int) else value
            for name, value in differing[layer].items()
        }
        for index, layer in enumerate(layers)
        if layer in differing
    }
