"""Small programs with a key/value cache, and capturing what Dynamo makes of them."""

from __future__ import annotations

import difflib
import re

import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.config import InnerQConfig
from innerq_compile.kernels.internals.dynamo_graphs import copy_graph
from innerq_compile.passes import PIPELINE, PassContext
from tests.helpers.without_inductor import as_it_is, without_inductor


class TinyAttention(nn.Module):
    """One attention layer with a cache that is a pair of tensors, grown by ``torch.cat``."""

    def __init__(self, heads: int = 2, kv_heads: int = 1, head_dim: int = 16, form: str = "sdpa") -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.form = heads, kv_heads, head_dim, form
        width = heads * head_dim
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * head_dim, bias=False)

    def forward(self, x, past=None, mask=None):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        if past is not None:
            k = torch.cat([past[0], k], dim=2)
            v = torch.cat([past[1], v], dim=2)
        cache = (k, v)
        groups = self.heads // self.kv_heads
        if self.form == "sdpa":
            causal = mask is None and past is None
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1)
        else:
            k = k[:, :, None].expand(-1, -1, groups, -1, -1).reshape(batch, self.heads, -1, self.head_dim)
            v = v[:, :, None].expand(-1, -1, groups, -1, -1).reshape(batch, self.heads, -1, self.head_dim)
            scores = torch.matmul(q, k.transpose(2, 3)) * self.head_dim**-0.5
            if mask is not None:
                scores = scores + mask
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
            out = torch.matmul(weights, v)
        return out.transpose(1, 2).reshape(batch, tokens, -1), cache


class LateTransposing(TinyAttention):
    """The same with a cache ``[B, S, H, D]``, which is transposed where it is read."""

    def forward(self, x, past=None, mask=None):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.kv_heads, self.head_dim)
        v = self.v(x).view(batch, tokens, self.kv_heads, self.head_dim)
        if past is not None:
            k = torch.cat([past[0], k], dim=1)
            v = torch.cat([past[1], v], dim=1)
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        causal = mask is None and past is None
        gqa = self.heads > self.kv_heads
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=gqa)
        return out.transpose(1, 2).reshape(batch, tokens, -1), (k, v)


class BufferAttention(TinyAttention):
    """The same with buffers of 256 tokens, which are written at positions that a tensor holds."""

    def forward(self, x, position, keys, values, mask):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)


class SlicedBuffers(TinyAttention):
    """The same with buffers that are written at a number, and read up to the end of what was written."""

    def forward(self, x, start, keys, values):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        end = start + tokens
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], enable_gqa=True)


def capture(fn, *calls, config: InnerQConfig) -> list[tuple[torch.fx.GraphModule, list]]:
    """The graphs that Dynamo hands to the backend while ``fn`` is called with each of ``calls`` in turn.

    A call is a function of the result of the call before it (None for the first) that gives the arguments. The graphs
    run as the passes leave them.
    """
    torch._dynamo.reset()
    captured = []

    def backend(gm, example_inputs):
        captured.append((copy_graph(gm), example_inputs))
        options = {name: getattr(config, name) for name in config.__dataclass_fields__}
        return innerq_backend(gm, example_inputs, options=options)

    compiled = torch.compile(fn, backend=backend)
    result = None
    with without_inductor(as_it_is), torch.no_grad():
        for call in calls:
            result = compiled(*call(result))
    return captured


def code_of(gm: torch.fx.GraphModule) -> str:
    """The graph as text without types, comments and clean-up of variables."""
    gm.recompile()
    lines = []
    for line in gm.code.strip().splitlines():
        line = line.split(";  ")[0].rstrip()
        if line.strip() and not line.strip().startswith("l_"):  # no renaming of inputs
            lines.append(line)
    return "\n".join(lines[1:])  # without the signature, which is long and repeats the inputs


def changes_by_pass(
    gm: torch.fx.GraphModule, config: InnerQConfig, static_lengths: bool = False, read=code_of
) -> dict[str, str]:
    """The graph as captured, then the lines that each pass takes out (-) and puts in (+), by the name of the pass.

    ``read`` makes text of a graph, as `code_of` and `brief_code_of` do. What is computed before the graph is under the
    name ``prelude``.
    """
    codes: list[str] = []
    changes: dict[str, str] = {}

    def observe(name: str, graph: torch.fx.GraphModule) -> None:
        codes.append(read(graph))
        if name == "captured":
            changes[name] = codes[-1]
            return
        diff = [line for line in difflib.ndiff(codes[-2].splitlines(), codes[-1].splitlines()) if line[0] in "+-"]
        if diff:
            changes[name] = "\n".join(line[0] + line[5:] for line in diff)

    context = PassContext(config, static_lengths)
    PIPELINE.run(copy_graph(gm), context, observe)
    if context.prelude is not None:
        changes["prelude"] = read(context.prelude.graph)
    return changes


def brief_code_of(gm: torch.fx.GraphModule) -> str:
    """`code_of` with the inner tensors of a cache as ``name...``, symbols as ``s``, without formats and namespaces."""
    inner = "scales|window|state|query_profile|mean|norm"
    code = re.sub(rf"(\w+)_codes(?:, \1_(?:{inner})\b)*", r"\1...", code_of(gm))
    code = re.sub(r"\bs\d+\b", "s", code)  # torch numbers them by where they come from
    code = re.sub(r", '(?:key|value):[\w:]+'", "", code)
    return re.sub(r"torch\.ops\.innerq\.(\w+)\.default", r"\1", code).replace("torch._C._nn.", "")
