"""Enumerations that are words."""

from __future__ import annotations

import enum


class StrEnum(str, enum.Enum):
    """An enum whose members equal their string values, print as them, and serialize to JSON as them."""

    def __str__(self) -> str:
        return str(self.value)
