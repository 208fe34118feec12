"""Attentions that read several caches in one softmax: all of the caches are read quantized, or none is."""

from __future__ import annotations

from torch.fx import Node

from ..context import AttentionMatch, CacheSource, PassContext

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
    """Leave those alone of which not all caches are read alike: all by a step, or all as they leave a prompt."""
    for matches in parts_of_each(context).values():
        sources = [context.uses[match][0].source for match in matches if match in context.uses]
        by_step = all(source in (CacheSource.APPENDED, CacheSource.READ) for source in sources)
        if len(sources) == len(matches) and (by_step or {*sources} == {CacheSource.FRESH}):
            continue
        for match in matches:
            if context.uses.pop(match, None) is not None:
                context.refuse(match, OTHER_PART)
