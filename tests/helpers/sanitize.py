"""A sample of every Triton kernel, for compute-sanitizer; inputs are made on the CPU and results are not compared.

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck --error-exitcode 9 python -m tests.helpers.sanitize

``racecheck``, ``initcheck`` and ``synccheck`` are the other tools. Without a GPU: ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import torch

from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.formats import blocks_for
from innerq_compile.kernels.triton import attention
from tests.helpers.strategies import make_format
from tests.helpers.triton_cases import Attention

F16, BF16 = torch.float16, torch.bfloat16


def formats(*sides, group: int = 32, dtype: torch.dtype = F16, scales: str | None = None, sink: int = 4):
    """Key and value format, from ``(mode, bits)`` of each."""
    return [
        make_format(role, bits, mode, group if role == "key" else 32, sink, 20, dtype, scales)
        for role, (mode, bits) in zip(("key", "value"), sides, strict=True)
    ]


#: Formats of both sides, head_dim, dtype.
FORMATS = {
    "base": (formats(("steered", 3), ("anchored", 3), scales="pair8"), 128, F16),
    "int4, D64": (formats(("steered", 4), ("anchored", 4), scales="pair8"), 64, F16),
    "2 and 8 bits, D256": (formats(("signed", 2), ("hybrid", 8), dtype=BF16), 256, BF16),
    "D80": (formats(("asymmetric", 3), ("symmetric", 5), group=16), 80, F16),
    "D96": (formats(("steered", 3), ("anchored", 3), dtype=BF16, scales="pair8"), 96, BF16),
    "D192": (formats(("asymmetric", 8), ("hybrid", 4)), 192, F16),
    "5 bits, D112, blocks": (formats(("hybrid", 5), ("hybrid", 3), group=16, sink=32), 112, F16),
    "lossless": (formats(("none", 3), ("none", 3)), 64, F16),
}
#: Rows of the query, mask, sequences padded, attention sinks.
CALLS = [(1, "none", False, False), (3, "open", True, False), (1, "added", True, True)]


def attend(pair, head_dim: int, dtype: torch.dtype, device: str) -> None:
    for rows, mask, padded, sinks in CALLS:
        case = Attention(*pair, dtype, 2, 2, 4, rows, 333, head_dim, mask=mask, padded=padded, sinks=sinks)
        call = case.call("cpu", torch.Generator().manual_seed(0))
        attention.decode_attention(call.map(lambda tensor: tensor.to(device)))


def write(pair, head_dim: int, dtype: torch.dtype, device: str) -> None:
    start = torch.tensor([0, 41], dtype=torch.int32, device=device)

    def normal(tokens: int) -> torch.Tensor:
        return torch.randn(2, tokens, 2, head_dim).to(dtype).to(device).transpose(1, 2)

    caches = []
    for fmt in pair:
        mean = norm = None
        x = normal(333)
        if fmt.is_key:
            mean, norm = kernels.key_statistics(x, start, centre=True, normalize=True, norm=fmt.norm)
        caches.append(kernels.prefill(x, start, mean, norm, blocks_for(fmt, 333) + 6, fmt))
    for count in (1, 31, 1, 70):
        kernels.append_([(cache, normal(count)) for cache in caches])
    kernels.rewind_(caches, torch.tensor([430], device=device))


def main(device: str) -> None:
    for name, case in FORMATS.items():
        write(*case, device)
        attend(*case, device)
        print(name, flush=True)
    row = torch.randn(1, 300).to(F16).to(device)
    kernels.row_linear(row, [torch.randn(n, 300).to(F16).to(device) for n in (70, 9)], [None, None])
    if device == "cuda":
        torch.cuda.synchronize()
    print("row_linear")


if __name__ == "__main__":
    main("cuda" if torch.cuda.is_available() else "cpu")
