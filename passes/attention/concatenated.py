"""Splits an attention over several caches at once into one for each of them.

    keys = cat([cat([past_k, k], 2), other_k], 2)            the tokens of a decoder, and those of its encoder
    values = cat([cat([past_v, v], 2), other_v], 2)
    out = attention(q, keys, values, mask)            ->     attention(q, cat([past_k, k], 2), ..., mask[..., :n])
                                                             attention(q, other_k, other_v, mask[..., n:])

The exponentials of all scores have one sum. So the results of the parts are added up, each with its share of that sum
(``emit/concatenated.py``). A part is one whose keys and values are a cache: quantized, or returned by the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import Node

from ..analysis.windows import kept_part
from ..context import AttentionMatch, ProgramCache, TokenPart
from ..graph.aliases import Writes
from ..graph.reading import is_output, read
from ..graph.values import made_equal, sizes_of


def by_cache(match: AttentionMatch, caches: dict[Node, ProgramCache], changes: Writes) -> tuple[AttentionMatch, ...]:
    """An attention for each of the caches that ``match`` reads one behind another; ``match`` alone if it reads one."""
    alone = (match,)
    if any(changes.of(node) for node in (match.key, match.value)):
        return alone
    if match.is_causal or match.softcap or any((match.sink_logits, match.latent, match.value_heads)):
        return alone
    sides = zip((match.key, match.value), match.tokens_dims, strict=True)
    keys, values = (_pieces(node, tokens_dim, caches) for node, tokens_dim in sides)
    sizes, others = (
        tuple(sizes_of(piece)[tokens_dim] for piece in pieces)
        for pieces, tokens_dim in zip((keys, values), match.tokens_dims, strict=True)
    )
    if len(sizes) < 2 or not align(sizes, others):
        return alone
    nodes = (match.key, match.value)
    return tuple(
        dataclasses.replace(match, key=key, value=value, part=TokenPart(index, sizes, nodes))
        for index, (key, value) in enumerate(zip(keys, values, strict=True))
    )


def align(sizes: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether two tensors that are as long as one another consist of pieces of the same sizes.

    Dynamo may have a symbol for each, so a guard may say that they are equal. It need not say so of the last piece.
    """
    pairs = zip(sizes[:-1], others[:-1], strict=False)
    return len(sizes) == len(others) and all(made_equal(*pair) for pair in pairs)


def _pieces(node: Node, tokens_dim: int, caches: dict[Node, ProgramCache]) -> tuple[Node, ...]:
    """The caches that keys or values consist of, one behind another; empty if they consist of anything else."""
    call = read(node)
    if call is None or call.name != "cat" or call["dim"] not in (tokens_dim, tokens_dim - 4):
        return ()
    tensors: Any = call["tensors"]
    if is_output(node) or kept_part(node, tokens_dim) is not None or not isinstance(tensors, (list, tuple)):
        return ()
    cached = all(isinstance(tensor, Node) and _is_cache(tensor, tokens_dim, caches) for tensor in tensors)
    return tuple(tensors) if cached and len({*tensors}) == len(tensors) else ()


def _is_cache(node: Node, tokens_dim: int, caches: dict[Node, ProgramCache]) -> bool:
    if node in caches:
        return caches[node].tokens_dim == tokens_dim
    return is_output(node) or kept_part(node, tokens_dim) is not None
