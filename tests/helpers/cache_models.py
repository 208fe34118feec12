"""Two models of a quantized cache: a dense tensor, and a second, slow implementation of the method."""

from __future__ import annotations

import torch

from innerq_compile.kernels import layout, reference
from innerq_compile.kernels.formats import CacheFormat


class DenseCache:
    """A cache that is a dense tensor. Nothing is shared: what happens to one is never seen by another."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def read(self) -> torch.Tensor:
        return self.tensor

    def append(self, new: torch.Tensor, in_place: bool) -> DenseCache:
        return DenseCache(torch.cat([self.tensor, new], dim=2))

    def crop(self, length: int) -> DenseCache:
        return DenseCache(self.tensor[:, :, :length])

    def select(self, rows: list[int]) -> DenseCache:
        return DenseCache(self.tensor[rows])

    def copy(self) -> DenseCache:
        return DenseCache(self.tensor.clone())


class MethodCache:
    """InnerQ token by token: sinks, a quantized region of whole blocks, a recent window.

    Views share their rows, as tensors share a storage: a shorter view reads what has become of its tokens.
    """

    def __init__(self, fmt: CacheFormat, rows: list[_Row], length: int) -> None:
        self.fmt, self.rows, self.length = fmt, rows, length

    @staticmethod
    def of(dense: torch.Tensor, fmt: CacheFormat, start: list[int], mean, norm) -> MethodCache:
        rows = []
        for b, padding in enumerate(start):
            own_mean, own_norm = (None if s is None else s[b] for s in (mean, norm))
            row = _Row(dense[b, :, :0].float(), dense.dtype, padding, own_mean, own_norm)
            row.append(dense[b, :, padding:], fmt)
            rows.append(row)
        return MethodCache(fmt, rows, dense.shape[2])

    def read(self) -> torch.Tensor:
        return torch.stack([row.read(self.length) for row in self.rows])

    def append(self, new: torch.Tensor, in_place: bool) -> MethodCache:
        made = MethodCache(self.fmt, self.rows if in_place else [row.copy() for row in self.rows], self.length)
        for row, tokens in zip(made.rows, new, strict=True):
            row.crop(self.length, self.fmt)
            row.append(tokens, self.fmt)
        made.length += new.shape[2]
        return made

    def crop(self, length: int) -> MethodCache:
        return MethodCache(self.fmt, self.rows, length)

    def select(self, rows: list[int]) -> MethodCache:
        chosen = MethodCache(self.fmt, [self.rows[row].copy() for row in rows], self.length)
        for row in chosen.rows:
            row.crop(self.length, self.fmt)
        return chosen

    def copy(self) -> MethodCache:
        return self.select(list(range(len(self.rows))))


class _Row:
    """One sequence: its tokens ``[H, N, D]`` as they are held now, in float32, and how many blocks are quantized."""

    def __init__(self, tokens, dtype, start, mean, norm, blocks: int = 0) -> None:
        self.tokens, self.dtype, self.start, self.mean, self.norm = tokens, dtype, start, mean, norm
        self.blocks = blocks

    def copy(self) -> _Row:
        return _Row(self.tokens.clone(), self.dtype, self.start, self.mean, self.norm, self.blocks)

    def append(self, new: torch.Tensor, fmt: CacheFormat) -> None:
        new = reference.normalize_keys(new, self.mean, self.norm)
        self.tokens = torch.cat([self.tokens, new.float()], dim=1)
        while self.tokens.shape[1] >= fmt.sink + (self.blocks + 1) * fmt.block + fmt.recent:
            first = fmt.sink + self.blocks * fmt.block
            block = self.tokens[:, first : first + fmt.block]
            # without queries, only the normalization of the keys is known of them
            profile = reference.default_profile(fmt, block[None], None if self.norm is None else self.norm[None])
            profile = None if profile is None else profile[0]
            codes, scales = reference.encode_blocks(block, fmt, profile)
            block.copy_(reference.decode_blocks(codes, scales, fmt, block.shape[-1]))
            self.blocks += 1

    def crop(self, length: int, fmt: CacheFormat) -> None:
        self.tokens, self.start = self.tokens[:, : max(length - self.start, 0)].clone(), min(self.start, length)
        self.blocks = min(self.blocks, max(self.tokens.shape[1] - fmt.sink, 0) // fmt.block)
        window = self.tokens[:, fmt.sink + self.blocks * fmt.block :]  # what is left of a block, in the cache's dtype
        window.copy_(window.to(self.dtype))

    def read(self, length: int) -> torch.Tensor:
        x = self.tokens[:, : max(length - self.start, 0)]
        if self.norm is not None:
            x = x * self.norm[:, None]
        if self.mean is not None:
            x = x + self.mean[:, None]
        padding = x.new_zeros((x.shape[0], min(self.start, length), x.shape[2]))
        return torch.cat([padding, x], dim=1).to(self.dtype)


def bytes_needed(fmt: CacheFormat, batch, heads, head_dim, dtype, length, *, statistics: int) -> int:
    """Bytes of a cache side without any spare capacity."""
    blocks = max(length - fmt.sink - fmt.recent, 0) // fmt.block
    return layout.cache_bytes(fmt, batch, heads, head_dim, dtype, blocks, statistics=statistics)
