"""A decoder over preallocated buffers that it writes in place, and the loop that runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import empty_cache, innerq


class BufferDecoder(nn.Module):
    """Layers of attention; each has a key and a value buffer ``[B, heads, max_tokens, head_dim]``.

    ``where`` says how a position is given: ``tensor`` (written by ``index_copy_``, read to the end under a mask) or
    ``number`` (written and read by slices).
    """

    def __init__(self, layers: int, heads: int, head_dim: int, where: str) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads, self.head_dim, self.where = heads, head_dim, where
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))

    def own(self, buffers: Sequence[torch.Tensor]) -> None:
        """Keep the buffers in the module instead of passing them."""
        for index, buffer in enumerate(buffers):
            self.register_buffer(f"cache_{index}", buffer)

    def forward(self, x: torch.Tensor, position, *buffers: torch.Tensor) -> torch.Tensor:
        """``x [B, N, width]``, whose first token goes to ``position``."""
        for index, qkv in enumerate(self.qkv):
            if buffers:
                keys, values = buffers[2 * index], buffers[2 * index + 1]
            else:
                keys, values = getattr(self, f"cache_{2 * index}"), getattr(self, f"cache_{2 * index + 1}")
            x = x + self.attention(x, qkv, position, keys, values)
        return x

    def attention(self, x, qkv, position, keys, values):
        batch, count, _ = x.shape
        q, k, v = qkv(x).view(batch, count, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.where == "tensor":
            keys.index_copy_(2, position, k)
            values.index_copy_(2, position, v)
            mask = torch.arange(keys.shape[2], device=x.device) <= position[:, None]
        else:
            end = position + count
            keys[:, :, position:end] = k
            values[:, :, position:end] = v
            keys, values = keys[:, :, :end], values[:, :, :end]
            mask = None
            if count > 1:
                mask = torch.arange(end, device=x.device) <= torch.arange(position, end, device=x.device)[:, None]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return out.transpose(1, 2).reshape(x.shape)


@torch.no_grad()
def decode(model: BufferDecoder, buffers: Sequence[torch.Tensor], prompt: int, steps: int, seed: int) -> torch.Tensor:
    """Outputs ``[B, steps, width]`` behind a prompt at position 0; the buffers may hold an earlier text."""
    weight = model.qkv[0].weight
    generator = torch.Generator().manual_seed(seed)
    batch = (buffers[0] if len(buffers) else model.cache_0).shape[0]
    outputs = []
    for first, count in [(0, prompt), *((place, 1) for place in range(prompt, prompt + steps))]:
        x = torch.randn(batch, count, weight.shape[1], generator=generator).to(weight)
        at = torch.arange(first, first + count, device=weight.device) if model.where == "tensor" else first
        outputs.append(model(x, at, *buffers).clone())
    return torch.cat(outputs[1:], 1)


def compiled_loops(
    kind: str, model: BufferDecoder, shape: tuple[int, ...], prompts: Sequence[int], steps: int, **options: Any
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For texts behind one another in the same buffers, the outputs of the model compiled and as it is.

    ``kind`` says whose buffers of ``shape`` they are: an ``argument``, ``registered`` in the module, or ``quantized``.
    ``options`` are those of `innerq`.
    """
    like = {"dtype": model.qkv[0].weight.dtype, "device": model.qkv[0].weight.device}
    count = 2 * len(model.qkv)
    dense = [torch.zeros(shape, **like) for _ in range(count)]
    expected = [decode(model, dense, prompt=tokens, steps=steps, seed=tokens) for tokens in prompts]
    buffers = [torch.zeros(shape, **like) for _ in range(count)]
    if kind == "quantized":
        roles = ("key", "value") * len(model.qkv)
        buffers = [empty_cache(*shape, role=role, config="lossless", **like) for role in roles]
    elif kind == "registered":
        model.own(buffers)
        buffers = []
    innerq(model, preset="lossless", **options)
    for tokens, right in zip(prompts, expected, strict=True):
        yield decode(model, buffers, prompt=tokens, steps=steps, seed=tokens), right
