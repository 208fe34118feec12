"""Dequantization of GGML's blocks in torch, for machines without the gguf package."""

from __future__ import annotations

import torch

#: Type -> (elements, bytes) of a block.
BLOCKS = {"F32": (1, 4), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q6_K": (256, 210)}


def _number(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes ``[blocks, n]`` as float32 numbers that are stored as ``dtype``."""
    return raw.contiguous().view(dtype).float()


def _fields(raw: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes ``[blocks, runs, n]`` as their fields of ``bits``, lowest first: ``[blocks, runs, 8 / bits, n]``."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=raw.device)
    return (raw[:, :, None] >> shifts[:, None]) & (2**bits - 1)


def _q5_0(raw: torch.Tensor) -> torch.Tensor:
    low = _fields(raw[:, None, 6:], 4).flatten(1)
    high = _fields(raw[:, 2:6, None], 1).flatten(1)  # the bits of a byte belong to neighbours
    return ((low | (high << 4)).float() - 16) * _number(raw[:, :2], torch.float16)


def _q4_k(raw: torch.Tensor) -> torch.Tensor:
    scale, low = _number(raw[:, :2], torch.float16), _number(raw[:, 2:4], torch.float16)
    # eight factors and eight offsets of 6 bits: four of each in a byte of their own, with upper two bits of the others
    first, second, rest = raw[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    factors = torch.cat((first & 63, (rest & 15) | (first >> 6 << 4)), 1)
    offsets = torch.cat((second & 63, (rest >> 4) | (second >> 6 << 4)), 1)
    codes = _fields(raw[:, 16:].unflatten(1, (4, 32)), 4).flatten(1, 2).float()
    return (codes * (scale * factors)[..., None] - (low * offsets)[..., None]).flatten(1)


def _q6_k(raw: torch.Tensor) -> torch.Tensor:
    low = _fields(raw[:, :128].unflatten(1, (2, 64)), 4).flatten(1)
    high = _fields(raw[:, 128:192].unflatten(1, (2, 32)), 2).flatten(1)
    scale = _number(raw[:, 208:], torch.float16) * _number(raw[:, 192:208], torch.int8)
    return (((low | (high << 4)).float() - 32).unflatten(1, (16, 16)) * scale[..., None]).flatten(1)


def dequantize(kind: str, raw: torch.Tensor) -> torch.Tensor:
    """GGML blocks ``raw [blocks, bytes]`` (uint8) as float32 ``[blocks, elements]``.

    Raises:
        ValueError: a type that is not in ``BLOCKS``.
    """
    if kind == "F32":
        return _number(raw, torch.float32)
    if kind == "Q8_0":
        return _number(raw[:, 2:], torch.int8) * _number(raw[:, :2], torch.float16)
    if kind == "Q4_1":
        codes = _fields(raw[:, None, 4:], 4).flatten(1).float()
        return codes * _number(raw[:, :2], torch.float16) + _number(raw[:, 2:4], torch.float16)
    if kind in BLOCKS:
        return {"Q5_0": _q5_0, "Q4_K": _q4_k, "Q6_K": _q6_k}[kind](raw)
    raise ValueError(f"GGML type {kind} is not supported: allowed are {', '.join(BLOCKS)}")
