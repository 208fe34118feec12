"""How an attention is recognized: by what it computes, dimension by dimension, not by how it is spelled.

``axes.py``      which axes (batch, head, token, ...) each dimension of a tensor runs over, through views and reshapes
``products.py``  matmul, @, bmm, baddbmm, einsum as one thing: labels of the operands' and the result's dimensions
``sides.py``     from an operand of a product back to the keys or values that a cache holds
``scores.py``    from the attention weights back to the product of query and key: masks, scale, soft-cap, sinks
``matcher.py``   puts the four together into an :class:`AttentionMatch`
"""

from .matcher import match_attention_at

__all__ = ["match_attention_at"]
