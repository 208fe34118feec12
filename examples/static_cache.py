"""Preallocated caches, written in place: a dense buffer with a quantized shadow, and a buffer that is quantized itself.

The first keeps the user's buffer right and saves time; the second saves the memory, too.

    python examples/static_cache.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import compiled_graphs, empty_cache, innerq


class Attention(nn.Module):
    def __init__(self, heads: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(heads * head_dim, 3 * heads * head_dim, bias=False)

    def forward(self, x, position, keys, values):
        """``x [B, N, width]``, written at ``position [N]`` of buffers ``[B, heads, max_tokens, head_dim]``."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        mask = torch.arange(keys.shape[2], device=x.device) <= position[:, None]  # what has been written
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return out.transpose(1, 2).reshape(x.shape)


@torch.no_grad()
def decode(model: nn.Module, keys: torch.Tensor, values: torch.Tensor, prompt: int, steps: int) -> torch.Tensor:
    """The outputs of ``steps`` tokens behind a prompt."""
    generator = torch.Generator().manual_seed(0)
    width, outputs = model.heads * model.head_dim, []
    model(torch.randn(1, prompt, width, generator=generator), torch.arange(prompt), keys, values)
    for place in range(prompt, prompt + steps):
        token = torch.randn(1, 1, width, generator=generator)
        outputs.append(model(token, torch.tensor([place]), keys, values))
    return torch.cat(outputs)


def main(arguments: list[str] | None = None) -> dict[str, torch.Tensor]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = Attention().eval()
    shape = (1, model.heads, args.max_tokens, model.head_dim)
    dense = [torch.zeros(shape) for _ in range(2)]
    outputs = {"plain": decode(model, *dense, args.prompt, args.steps)}

    innerq(model)
    shadowed = [torch.zeros(shape) for _ in range(2)]
    outputs["dense buffers, quantized shadows"] = decode(model, *shadowed, args.prompt, args.steps)
    quantized = [empty_cache(*shape, role=role) for role in ("key", "value")]
    outputs["quantized buffers"] = decode(model, *quantized, args.prompt, args.steps)

    for report in compiled_graphs():
        print(report)
    for title, out in outputs.items():
        difference = (out - outputs["plain"]).square().mean().sqrt() / outputs["plain"].square().mean().sqrt()
        print(f"{title:<34} differs by {float(difference):.2e} rms")
    print(f"bytes of dense buffers: {sum(buffer.nbytes for buffer in dense):,}")
    print(f"bytes of quantized buffers: {sum(buffer.nbytes_held for buffer in quantized):,}")
    return outputs


if __name__ == "__main__":
    main()
