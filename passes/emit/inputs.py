"""Adds placeholders for the inner tensors of a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...kernels import layout
from ...kernels.cache import CacheTensors
from ...kernels.formats import CacheFormat
from ...kernels.internals.dynamo_graphs import AttrSource, Source
from ...kernels.internals.tensors import FakeTensor, fake_empty
from ..graph.writing import Writer


def cache_examples(
    fmt: CacheFormat,
    lead: tuple[Any, Any],
    head_dim: int,
    capacity: Any,
    dtype: torch.dtype,
    like: FakeTensor,
    *,
    mean: bool,
    norm: bool,
) -> CacheTensors[torch.Tensor]:
    """Fake tensors for the inner tensors of a cache.

    Args:
        fmt: the format of the cache.
        lead: batch size and number of KV heads.
        head_dim: elements of a key or value, as the program sees it.
        capacity: the number of blocks that there is room for.
        dtype: the dtype of the cache before quantization.
        like: a fake tensor of the fake mode and device to use.
        mean, norm: whether the cache has these key statistics.
    """
    held = head_dim + fmt.zeros
    shapes = layout.shapes(fmt, *lead, held, capacity)
    mode, device = like.fake_mode, like.device
    examples = {name: fake_empty(mode, shape, own or dtype, device) for name, (shape, own) in shapes.items()}
    for name, present in (("mean", mean), ("norm", norm)):
        if present:
            examples[name] = fake_empty(mode, (*lead, held), torch.float32, device)
    return CacheTensors.of(fmt, examples)


def add_placeholders(
    write: Writer, name: str, examples: CacheTensors[torch.Tensor], source: Source | None
) -> CacheTensors[Node]:
    """Add a placeholder for each inner tensor, after the existing placeholders.

    Args:
        write: a writer of the graph.
        name: the prefix of their names.
        examples: their example values.
        source: Dynamo's source of the cache, which AOTAutograd needs for each input.
    """
    nodes = {
        inner: write.placeholder(f"{name}_{inner}", value, source and AttrSource(source, inner))
        for inner, value in examples.present().items()
    }
    return CacheTensors.of(examples.format, nodes)
