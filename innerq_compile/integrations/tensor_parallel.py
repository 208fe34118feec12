"""Tensor-parallel models of transformers (``tp_plan``): checks that their KV heads can be divided among the ranks.

Nothing else is needed for them: each rank compiles the model with its own heads, and holds the caches of those.
"""

from __future__ import annotations

from typing import Any

from ..errors import InnerQError

#: The names that transformers gives to key projections, alone or fused with queries and values.
KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")


def _holds_keys(name: str) -> bool:
    """Whether a name in a plan is that of a decoder's key projection. Vision and audio encoders have no KV cache."""
    *path, last = name.split(".")
    return last in KEY_PROJECTIONS and not any(part.startswith(("vision", "visual", "audio")) for part in path)


def check_heads(model: Any) -> None:
    """Check that the KV heads of a model can be divided among its ranks.

    transformers divides the rows of the key projection equally, regardless of head boundaries, and does not replicate
    KV heads (transformers 5.23, ``distributed/tensor_parallel.py``). With any other number of ranks the model fails in
    a view.

    Raises:
        InnerQError: if the number of KV heads is not a multiple of the number of ranks.
    """
    ranks = getattr(model, "_tp_size", None) or 1
    if ranks == 1:
        return
    cut = [name for name, style in (model.tp_plan or {}).items() if style == "colwise" and _holds_keys(name)]
    if not cut:
        return
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    if isinstance(heads, int) and heads % ranks:
        raise InnerQError(
            f"{heads} KV heads are not allowed on {ranks} ranks: the tp_plan splits {cut[0]} into {ranks} equal "
            "parts, and transformers neither splits nor replicates a KV head. Use a number of ranks that divides "
            f"{heads}, or replicate attention and its cache on every rank: give from_pretrained a tp_plan in "
            "which q_proj, k_proj, v_proj and o_proj are 'replicate'"
        )
