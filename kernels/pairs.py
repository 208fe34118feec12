"""Which channels of a key share one normalization factor: the pairs that a rotary embedding rotates.

A factor commutes with a rotary embedding only if both channels of a pair have the same one. ``CacheFormat.norm`` names
how the factors of a cache are computed, and which channels share one:

    channel              each channel has its own
    half64               channels c and c + 32 of the first 64 share one (rotate-half); the other channels do not
    interleaved64        channels 2c and 2c + 1 of the first 64 share one
    half64@16            as half64, for the 64 channels from channel 16 on
    paper                each channel has its own, by the formula of the paper (see ``reference.key_statistics``)
"""

from __future__ import annotations

import dataclasses
import functools
import re

import torch

_WORD = re.compile(r"(half|interleaved)(\d+)(?:@(\d+))?")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of channels among ``[first, first + count)``; no pairs where ``count`` is 0."""

    interleaved: bool = False
    count: int = 0
    first: int = 0

    @staticmethod
    @functools.cache
    def parse(word: str) -> Pairs:
        """Parse a ``CacheFormat.norm``.

        Raises:
            ValueError: if ``word`` is none of those above.
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
        """For each channel the other channel of its pair, or itself where it has none."""
        out = list(range(head_dim))
        for c in range(self.count):
            other = c ^ 1 if self.interleaved else (c + self.count // 2) % self.count
            out[self.first + c] = self.first + other
        return tuple(out)

    def swapped(self, x: torch.Tensor) -> torch.Tensor:
        """``x [..., D]`` with the two channels of each pair exchanged.

        Made of slices: an index tensor would be copied to the device at every call of a graph.
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
    """The :class:`Pairs` with these :meth:`Pairs.partners`, or None where no ``CacheFormat.norm`` describes them."""
    paired = [c for c, other in enumerate(partners) if other != c]
    if not paired:
        return Pairs()
    first, count = paired[0], paired[-1] + 1 - paired[0]
    for interleaved in (False, True):
        found = Pairs(interleaved, count, first)
        if count % 2 == 0 and found.partners(len(partners)) == partners:
            return found
    return None
