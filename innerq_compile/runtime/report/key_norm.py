"""Where the key normalization of an attention is applied."""

from __future__ import annotations

import dataclasses
import enum


class KeyNormOrigin(enum.Enum):
    """How keys get their normalization in a graph that multiplies no query and divides no new key by it."""

    ABSENT = "none"
    FROM_PROMPT = "taken from the prompt"
    WITH_DEQUANTIZED = "in the dequantized keys"


@dataclasses.dataclass(frozen=True)
class KeyNormReport:
    """Where the key normalization of an attention is applied. ``str`` gives it in words.

    Attributes:
        query: where the query is multiplied by it, such as ``query projection``; empty where it is not.
        new_key: where the new key is divided by it; empty where it is not.
        origin: how keys get it where both are empty.
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
        """The first of the places."""
        return self._parts[0]

    def __str__(self) -> str:
        return ", ".join(self._parts)
