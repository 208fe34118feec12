"""A side of a cache as the library holds it, with the library's own statistics, quantization and byte count."""

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

    def held(
        self, x: torch.Tensor, prompt: int, moments: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, CacheFormat]:
        """``x [B, H, S, D]`` quantized and dequantized, with the statistics of its first ``prompt`` tokens.

        ``moments`` are the query moments of the prompt.
        """
        fmt = self.format(x.shape[-1], x.dtype)
        start = torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        mean = norm = divisor = profile = None
        config, moments = self.config, moments if fmt.uses_queries else None
        if moments is not None:
            divisor = reference.norm_divisor(moments, fmt.norm)
        if self.role == "key" and config.has_key_statistics:
            mean, norm = reference.key_statistics(
                x[:, :, :prompt],
                start,
                centre=config.centre_keys,
                normalize=config.normalize_keys,
                norm=fmt.norm,
                divisor=divisor,
            )
            mean, norm = (mean if config.centre_keys else None), (norm if config.normalize_keys else None)
        if moments is not None:
            profile = reference.query_profile(moments, norm, fmt.group_size)
        tokens = x.shape[2]
        cache = reference.prefill(x, start, mean, norm, blocks_for(fmt, tokens), fmt, profile)
        return reference.dequantize(cache, tokens), fmt


def stored_bits(fmt: CacheFormat, head_dim: int) -> float:
    """Bits of an element of the quantized region: all bytes of a block over its elements."""
    sizes = [layout.cache_bytes(fmt, 1, 1, head_dim, torch.float32, blocks) for blocks in (1, 2)]
    return 8 * (sizes[1] - sizes[0]) / (fmt.block * head_dim)
