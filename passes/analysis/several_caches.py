"""Attentions that read several caches in one softmax: all of the caches are read quantized, or none is.

keys = cat([prompt_k, cat([past_k, k], 2)], 2)        both are read quantized
keys = cat([prompt_k, cat([empty, k], 2)], 2)         a cache begins: in this step both are read dense
keys = cat([prompt_k, k], 2)                          the program may append k to prompt_k elsewhere: left alone
"""

from __future__ import annotations

import dataclasses

from torch.fx import Node

from ..context import AttentionMatch, CacheSource, CacheUse, PassContext
from ..graph.reading import read
from ..graph.values import tensor_of

OTHER_PART = (
    "the attention reads another cache in the same softmax, which is not quantized, or is written in another way"
)


def parts_of_each(context: PassContext) -> dict[Node, list[AttentionMatch]]:
    """The matches for the caches of each attention that reads several, by its output."""
    found: dict[Node, list[AttentionMatch]] = {}
    for match in context.attentions:
        if match.part is not None:
            found.setdefault(match.node, []).append(match)
    return found


def leave_incomplete(context: PassContext) -> None:
    """Leave those alone of which not all caches are read alike: all by a step, or all as they leave a graph.

    Beside a cache that is made in this graph, one that exists already is read dequantized: this happens once for each
    cache that is made, and from the next step on both are read quantized.
    """
    for matches in parts_of_each(context).values():
        sources = {context.uses[match][0].source for match in matches if match in context.uses}
        complete = all(match in context.uses for match in matches)
        if complete and (sources <= {CacheSource.APPENDED, CacheSource.READ} or sources == {CacheSource.FRESH}):
            continue
        if complete and all(_may_be_dense(use) for match in matches for use in context.uses[match]):
            for match in matches:
                context.uses[match] = _read_dense(*context.uses[match])
            continue
        for match in matches:
            if context.uses.pop(match, None) is not None:
                context.refuse(match, OTHER_PART)


def _may_be_dense(use: CacheUse) -> bool:
    """Whether reading a cache dense beside others is no loss in the steps to come."""
    if use.source is CacheSource.FRESH:
        return _begins(use)
    return use.source.stays_dense or use.source is CacheSource.READ


def _begins(use: CacheUse) -> bool:
    """Whether new tokens are appended, ``cat([past_k, k], 2)``, to an empty cache or to a dense one from outside."""
    call = read(use.node)
    if call is None or call.name != "cat" or call["dim"] not in (use.tokens_dim, use.tokens_dim - 4):
        return False
    first = call["tensors"][0]
    past = tensor_of(first)
    if past is None:
        return False
    if first.op == "placeholder":
        return True
    held = past.shape[0 if past.dim() == 1 else use.tokens_dim]  # an empty tensor of one dimension goes with any other
    return isinstance(held, int) and held == 0


def _read_dense(*uses: CacheUse) -> tuple[CacheUse, CacheUse]:
    key, value = (
        dataclasses.replace(use, source=CacheSource.BESIDE) if use.source is CacheSource.READ else use for use in uses
    )
    return key, value
