"""Models that transformers has split among ranks (``tp_plan``): what of them cannot be split.

Nothing else is to be done for them: every rank traces the model of its own heads, and holds their caches.
"""

from __future__ import annotations

from typing import Any

from ..errors import InnerQError

#: Projections that hold the keys, alone or fused with queries and values, as transformers names them.
KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")


def _holds_keys(name: str) -> bool:
    """Whether a name in a plan is that of a decoder's key projection; other towers have other heads, and no cache."""
    *path, last = name.split(".")
    return last in KEY_PROJECTIONS and not any(part.startswith(("vision", "visual", "audio")) for part in path)


def check_heads(model: Any) -> None:
    """Refuse a model whose KV heads its ranks cannot share.

    transformers cuts the rows of the key projection into equal parts, whatever the heads are, and the model then fails
    in a view: a KV head is neither cut nor replicated (transformers 5.23, ``distributed/tensor_parallel.py``).

    Raises:
        InnerQError: if the number of ranks does not divide that of the KV heads.
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
            f"{heads} KV heads are not allowed on {ranks} ranks: the plan cuts {cut[0]} into {ranks} equal "
            "parts, and transformers neither cuts nor replicates a KV head. Start a number of ranks that divides "
            f"{heads}, or let every rank hold the whole attention and its cache: give from_pretrained a tp_plan in "
            "which q_proj, k_proj, v_proj and o_proj are 'replicate'"
        )
