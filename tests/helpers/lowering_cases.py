"""A layer's attention around ``innerq::decode_attention``, as decode graphs hold it, for the tests of its lowering."""

from __future__ import annotations

import dataclasses

import torch

from innerq_compile.kernels import reference
from tests.helpers.triton_cases import TOLERANCE, Attention, rms_ratio


class Layer:
    """``o_proj(decode_attention(rope(q) * norm, cache))`` of a case, with its inputs and its reference.

    ``call`` takes the inputs as a list of tensors: query, cosines, sines, key norm, eight cache tensors, then the mask
    the sink logits and the part of the query that meets the values, where the case has them.
    """

    def __init__(self, case: Attention, device: str = "cpu", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.case = case
        self.given = given = case.call(device, generator)
        query = given.query
        batch, heads, rows, head_dim = query.shape
        angles = torch.rand((batch, 1, rows, head_dim), generator=generator).to(case.dtype).to(device)
        norm = (torch.rand((batch, heads, 1, head_dim), generator=generator) + 0.5).to(case.dtype).to(device)
        self.inputs = [query, angles.cos(), angles.sin(), norm, *given.keys.encoded, *given.values.encoded]
        optional = {"mask": given.mask, "sink_logits": given.sink_logits, "value_query": given.value_query}
        self.inputs += [tensor for tensor in optional.values() if tensor is not None]
        self.names = [name for name, tensor in optional.items() if tensor is not None]
        self.opened = given.open_from is not None
        self.constants = (given.scale, given.softcap, given.causal, given.keys.format.spec, given.values.format.spec)

    @staticmethod
    def query_of(query, cos, sin, norm):
        half = query.shape[-1] // 2
        rotated = torch.cat((-query[..., half:], query[..., :half]), -1)
        return (query * cos + rotated * sin) * norm

    def call(self, query, cos, sin, norm, *rest, dropped=None):
        """``dropped``: an int or a SymInt in place of the case's."""
        caches, optional = rest[:8], dict(zip(self.names, rest[8:], strict=True))
        mask, opened = optional.get("mask"), None
        if self.opened:
            opened = torch.ops.innerq.open_from(mask, caches[3], query.shape[2])
        out = torch.ops.innerq.decode_attention(
            *(self.query_of(query, cos, sin, norm), *caches, mask, opened, optional.get("sink_logits")),
            *(*self.constants, self.case.dropped if dropped is None else dropped, optional.get("value_query")),
            self.case.value_heads,
        )
        return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1).to(torch.float32)

    def expected(self) -> torch.Tensor:
        """In float64, from the query as it is rounded to the model's dtype."""
        call = dataclasses.replace(self.given, query=self.query_of(*self.inputs[:4]))
        out = reference.decode_attention(call, torch.float64)
        return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)

    def check(self, actual: torch.Tensor) -> None:
        expected = self.expected()
        assert actual.shape == expected.shape
        # a fused query is not rounded between its operations, which costs the tolerance once more
        ratio = rms_ratio(actual, expected)
        assert ratio < 2 * TOLERANCE[self.case.dtype], f"error {ratio:.2e}"
