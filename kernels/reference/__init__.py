"""The reference: InnerQ in plain torch, which defines the results of all other kernels.

It is not fast. Arithmetic is float32, or float64 where inputs are float64. All functions run on any device; those that
read the state of a cache do not run under fake tensors.
"""

from .attention import decode_attention, decode_attention_lse
from .caches import (
    MISSED,
    append_,
    dequantize,
    empty_cache,
    prefill,
    quantized_blocks,
    real_tokens,
    rewind_,
    truncate_,
)
from .groups import (
    decode_blocks,
    dequantize_groups,
    encode_blocks,
    quantize_groups,
    scale_numbers,
)
from .linear import row_linear
from .statistics import (
    LEAST_QUERY,
    MAX_DIVIDED_KEY,
    MAX_PROFILE,
    MAX_QUERY,
    MIN_KEY_NORM,
    MIN_STATISTICS_TOKENS,
    MOST_QUERIES,
    default_moments,
    default_profile,
    key_statistics,
    norm_divisor,
    normalize_keys,
    query_moments,
    query_profile,
)

__all__ = [
    "LEAST_QUERY",
    "MAX_DIVIDED_KEY",
    "MAX_PROFILE",
    "MAX_QUERY",
    "MIN_KEY_NORM",
    "MIN_STATISTICS_TOKENS",
    "MISSED",
    "MOST_QUERIES",
    "append_",
    "decode_attention",
    "decode_attention_lse",
    "decode_blocks",
    "default_moments",
    "default_profile",
    "dequantize",
    "dequantize_groups",
    "empty_cache",
    "encode_blocks",
    "key_statistics",
    "norm_divisor",
    "normalize_keys",
    "prefill",
    "quantize_groups",
    "quantized_blocks",
    "query_moments",
    "query_profile",
    "real_tokens",
    "rewind_",
    "row_linear",
    "scale_numbers",
    "truncate_",
]
