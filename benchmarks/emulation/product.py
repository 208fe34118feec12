"""A side of a cache as the product holds it: config, statistics, coding and bytes are all the product's own.

Nothing here knows what a format is made of, so a new one is measured without a change.
"""

from __future__ import annotations

import dataclasses

import torch

from innerq_compile import InnerQConfig
from innerq_compile.kernels import layout, reference
from innerq_compile.kernels.formats import CacheFormat, blocks_for


@dataclasses.dataclass(frozen=True)
class ProductSide:
    """The keys or values of a cache under ``config``."""

    config: InnerQConfig
    role: str

    def format(self, head_dim: int, dtype: torch.dtype = torch.float32) -> CacheFormat:
        return self.config.format_for(self.role, head_dim, dtype)

    def bits_per_element(self, head_dim: int) -> float:
        return stored_bits(self.format(head_dim), head_dim)

    def held(self, x: torch.Tensor, prompt: int, asked: torch.Tensor | None = None) -> tuple[torch.Tensor, CacheFormat]:
        """What a cache gives back of ``x [B, H, S, D]`` when its first ``prompt`` tokens were the prompt.

        ``asked`` is what `reference.query_statistics` gave of the prompt's queries.
        """
        fmt = self.format(x.shape[-1], x.dtype)
        start = torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        mean = norm = weight = rows = None
        config, asked = self.config, asked if fmt.uses_queries else None
        if asked is not None:
            weight = reference.query_weight(asked, fmt.norm)
        if self.role == "key" and config.has_key_statistics:
            mean, norm = reference.key_statistics(
                x[:, :, :prompt],
                start,
                centre=config.centre_keys,
                normalize=config.normalize_keys,
                norm=fmt.norm,
                weight=weight,
            )
            mean, norm = (mean if config.centre_keys else None), (norm if config.normalize_keys else None)
        if asked is not None:
            rows = reference.query_rows(asked, norm, fmt.group_size)
        tokens = x.shape[2]
        cache = reference.prefill(x, start, mean, norm, blocks_for(fmt, tokens), fmt, rows)
        return reference.dequantize(cache, tokens), fmt


def stored_bits(fmt: CacheFormat, head_dim: int) -> float:
    """Bits of an element of the quantized region, all that a block takes over all its elements."""
    sizes = [layout.cache_bytes(fmt, 1, 1, head_dim, torch.float32, blocks) for blocks in (1, 2)]
    return 8 * (sizes[1] - sizes[0]) / (fmt.block * head_dim)
