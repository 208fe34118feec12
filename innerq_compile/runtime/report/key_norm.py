"""Where the key normalization of an attention is applied."""

from __future__ import annotations

import dataclasses
import enum


class KeyNormOrigin(enum.Enum):
    """Where the key normalization is applied in a graph that applies it neither to a query nor to a new key.

    Attributes:
        ABSENT: The keys are not normalized.
        FROM_PROMPT: It is computed here, from the keys of the prompt.
        WITH_DEQUANTIZED: Dequantization undoes it.
    """

    ABSENT = "none"
    FROM_PROMPT = "computed from the prompt"
    WITH_DEQUANTIZED = "undone by dequantization"


@dataclasses.dataclass(frozen=True)
class KeyNormReport:
    """Where the key normalization of an attention is applied. ``str`` describes it.

    Attributes:
        query: Where the query is multiplied by it; empty if it is not.
        new_key: Where the new keys are divided by it; empty if they are not.
        origin: Where it is applied if both are empty.
    """

    query: str = ""
    new_key: str = ""
    origin: KeyNormOrigin = KeyNormOrigin.ABSENT

    @property
    def _parts(self) -> list[str]:
        places = (("query", self.query), ("new key", self.new_key))
        return [f"{what}: {place}" for what, place in places if place] or [self.origin.value]

    @property
    def short(self) -> str:
        """The first part of the description, without the reason in brackets."""
        return self._parts[0].partition(" (")[0]

    def __str__(self) -> str:
        return ", ".join(self._parts)
