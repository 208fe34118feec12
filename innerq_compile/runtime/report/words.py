"""Enumerations that are words."""

from __future__ import annotations

import enum


class Word(str, enum.Enum):
    """One of a few words. It is equal to the word, prints as it, and can be written to JSON."""

    def __str__(self) -> str:
        return str(self.value)
