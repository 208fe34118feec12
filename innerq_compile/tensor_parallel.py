"""Models that transformers has split among ranks (``tp_plan``): what of them cannot be split.

Nothing else is to be done for them: every rank traces the model of its own heads, and holds their caches.
"""

from __future__ import annotations

from typing import Any

from .errors import InnerQError

#: Projections that hold the keys, alone or fused with queries and values, as transformers names them.
KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")


def check_heads(model: Any) -> None:
    """Refuse a model whose KV heads its ranks cannot share.

    transformers cuts the rows of the key projection into equal parts, whatever the heads are, and the model then fails
    in a view: a KV head is neither cut nor replicated (transformers 5.23, ``distributed/tensor_parallel.py``).

    Raises:
        InnerQError: if the number of ranks does not divide that of the KV heads.
    """
    ranks = getattr(model, "_tp_size", None) or 1
    plan = getattr(model, "tp_plan", None) or {}
    cut = [name for name, style in plan.items() if style == "colwise" and name.rsplit(".", 1)[-1] in KEY_PROJECTIONS]
    if ranks == 1 or not cut:
        return
    heads = getattr(model.config.get_text_config(), "num_key_value_heads", None)
    if isinstance(heads, int) and heads % ranks:
        raise InnerQError(
            f"num_key_value_heads={heads} is not allowed on {ranks} ranks: the plan cuts {cut[0]} into {ranks} equal "
            "parts, and transformers neither cuts nor replicates a KV head. Start a number of ranks that divides "
            f"{heads}, or let every rank hold the whole attention and its cache: give from_pretrained a tp_plan in "
            "which q_proj, k_proj, v_proj and o_proj are 'replicate'"
        )
