"""The structural matcher of attentions: recognizes what is computed, independent of spelling and layout.

``axes.py``       the axes (batch, head, token, ...) of each dimension of a tensor, through views and reshapes
``products.py``   matmul, @, bmm, baddbmm and einsum in one representation
``views.py``      views, copies, casts, repetitions and constant factors
``parts.py``      a range of one dimension of a tensor
``sides.py``      walks from an operand of a product back to the keys or values that a cache holds
``lookahead.py``  whether a tensor can be part of an attention at all
``steps.py``      the operations between the product of query and key and the attention weights
``weights.py``    walks from the attention weights back to the product of query and key, and lists these operations
``scores.py``     what these operations compute: scale, softcap, masks, sinks
``gates.py``      a gate on the output that is a sink logit
``latent.py``     keys and values that are computed from a latent (MLA)
``concatenated.py``  several caches, of which one softmax is
``matcher.py``    combines all of this to an :class:`AttentionMatch`
"""

from .concatenated import by_cache
from .latent import with_latent
from .matcher import match_attention_at

__all__ = ["by_cache", "match_attention_at", "with_latent"]
