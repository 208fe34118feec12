"""What the compiler did with a model: the explanation, a page with its graphs, and bisecting a difference.

python examples/debug_graphs.py                   # writes innerq_graphs/index.html
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import dump_graphs, explain, innerq


class TwoAttentions(nn.Module):
    """Its first attention is an ordinary one. The second reads every other token only, which no pass rewrites."""

    def __init__(self, heads: int = 4, head_dim: int = 32) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(heads * head_dim, 3 * heads * head_dim, bias=False)

    def forward(self, x, past=None):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        out = out + F.scaled_dot_product_attention(q, k[:, :, ::2], v[:, :, ::2])
        return out.transpose(1, 2).reshape(x.shape), (k, v)


@torch.no_grad()
def decode(model: nn.Module, steps: int = 40) -> torch.Tensor:
    """The outputs of a prompt of 300 tokens and ``steps`` more, always of the same numbers."""
    generator = torch.Generator().manual_seed(0)
    _, cache = model(torch.randn(1, 300, 128, generator=generator))
    outputs = []
    for _ in range(steps):
        out, cache = model(torch.randn(1, 1, 128, generator=generator), cache)
        outputs.append(out)
    return torch.cat(outputs)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="innerq_graphs", help="folder for the graphs")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = TwoAttentions().eval()
    exact = decode(model)

    with dump_graphs(args.out) as page:
        print(explain(decode, innerq(model), 2))
    print(f"graphs: {page}\n")

    differences = {}
    for title, options in {
        "as it is": {},
        "nothing quantized": {"preset": "lossless"},
        "no rewrite": {"rewrite": False},
        "without rewrite_decode": {"disabled_passes": ("rewrite_decode",)},
    }.items():
        torch._dynamo.reset()
        model._compiled_call_impl = None
        difference = decode(innerq(model, **options)) - exact
        differences[title] = float(difference.square().mean().sqrt() / exact.square().mean().sqrt())
        print(f"{title:<24} differs from the plain model by {differences[title]:.2e} rms")
    return differences


if __name__ == "__main__":
    main()
