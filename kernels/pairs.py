"""Which channels of a key share one normalization: the pairs that a rotary embedding turns into one another.

A factor can move through a rotary embedding only if both channels of a pair have it. How a cache's normalization is
taken is one word, ``CacheFormat.norm``:

    channel              each channel by itself
    half64               channels c and c + 32 of the first 64 share one (rotate-half), the others are alone
    interleaved64        channels 2c and 2c + 1 of the first 64
    half64@16            the same with the 64 channels from 16 on
    paper                each channel by itself, as published (see ``reference.key_statistics``)
"""

from __future__ import annotations

import dataclasses
import functools
import re

import torch

_WORD = re.compile(r"(half|interleaved)(\d+)(?:@(\d+))?")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs among the channels ``[first, first + count)``; none where ``count`` is 0."""

    interleaved: bool = False
    count: int = 0
    first: int = 0

    @staticmethod
    @functools.cache
    def parse(word: str) -> Pairs:
        """The pairs of a ``CacheFormat.norm``.

        Raises:
            ValueError: for a word that is none.
        """
        if word in ("channel", "paper"):
            return Pairs()
        found = _WORD.fullmatch(word)
        if found is None or int(found[2]) % 2 or not int(found[2]):
            raise ValueError(f"norm={word!r} is unknown: allowed are channel, paper, half<n> and interleaved<n>")
        return Pairs(found[1] == "interleaved", int(found[2]), int(found[3] or 0))

    @property
    def word(self) -> str:
        if not self.count:
            return "channel"
        return f"{'interleaved' if self.interleaved else 'half'}{self.count}" + f"@{self.first}" * bool(self.first)

    def partners(self, head_dim: int) -> tuple[int, ...]:
        """For each channel the other one of its pair, or itself."""
        out = list(range(head_dim))
        for c in range(self.count):
            other = c ^ 1 if self.interleaved else (c + self.count // 2) % self.count
            out[self.first + c] = self.first + other
        return tuple(out)

    def swapped(self, x: torch.Tensor) -> torch.Tensor:
        """``x [..., D]`` with the two channels of each pair in each other's place.

        Without an index, which a graph would copy to the device at every call.
        """
        if not self.count:
            return x
        end = self.first + self.count
        inside = x[..., self.first : end]
        if self.interleaved:
            inside = inside.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            inside = inside.roll(self.count // 2, -1)
        return torch.cat((x[..., : self.first], inside, x[..., end:]), -1)


def pairs_of(partners: tuple[int, ...]) -> Pairs | None:
    """The `Pairs` with these partners, or None where no word says it."""
    paired = [c for c, other in enumerate(partners) if other != c]
    if not paired:
        return Pairs()
    first, count = paired[0], paired[-1] + 1 - paired[0]
    for interleaved in (False, True):
        found = Pairs(interleaved, count, first)
        if count % 2 == 0 and found.partners(len(partners)) == partners:
            return found
    return None
