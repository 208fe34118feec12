"""A decoder of one's own, with its own loop: the decorator is all that it takes.

The model knows nothing of quantization. It keeps keys and values as tensors and grows them with ``torch.cat``.

    python examples/custom_decoder.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import InnerQTensor, innerq

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Block(nn.Module):
    """Attention with grouped key/value heads, and an MLP."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, past):
        batch, tokens, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=past is None, enable_gqa=True)
        x = x + self.out(out.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x)), (k, v)


@innerq(preset="base")  # every instance is compiled, and its caches are quantized
class Decoder(nn.Module):
    def __init__(self, vocabulary: int = 256, width: int = 128, layers: int = 2, heads: int = 4, kv_heads: int = 2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, cache: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        x, new_cache = self.embed(tokens), []
        for index, block in enumerate(self.blocks):
            x, pair = block(x, None if cache is None else cache[index])
            new_cache.append(pair)
        return self.head(x[:, -1]), new_cache


@torch.no_grad()
def generate(model: Decoder, prompt: torch.Tensor, count: int) -> tuple[list[int], Cache]:
    """Greedy decoding: one call for the prompt, one for each token."""
    logits, cache = model(prompt)
    tokens = [int(logits.argmax(-1))]
    while len(tokens) < count:
        logits, cache = model(torch.tensor([[tokens[-1]]]), cache)
        tokens.append(int(logits.argmax(-1)))
    return tokens, cache


def main(arguments: list[str] | None = None) -> Cache:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--context", type=int, default=500)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = Decoder().eval()
    tokens, cache = generate(model, torch.randint(0, 256, (1, args.context)), args.tokens)
    print("tokens:", *tokens)
    held = 0
    for keys, values in cache:
        assert isinstance(keys, InnerQTensor) and isinstance(values, InnerQTensor)
        held += keys.nbytes_held + values.nbytes_held
    dense = sum(2 * keys.numel() * keys.element_size() for keys, _ in cache)
    print(f"cache of {cache[0][0].shape[2]} tokens: {held:,} bytes, {dense:,} without quantization")
    return cache


if __name__ == "__main__":
    main()
