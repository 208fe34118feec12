"""Small caches without the compiler: how tests make, copy, crop and compare them."""

from __future__ import annotations

import copy
import io
import pickle

import torch

from innerq_compile import InnerQConfig, InnerQTensor

HEADS, HEAD_DIM = 2, 16
ROLES = ("key", "value")
#: Windows so small that a few dozen tokens leave them.
SMALL_WINDOWS = {"sink": 4, "recent": 8}


def random_cache(tokens: int, batch: int = 2, heads: int = HEADS, head_dim: int = HEAD_DIM, dtype=torch.float32):
    """Keys with large constant channels, which the key statistics are for."""
    return (torch.randn(batch, heads, tokens, head_dim) + 3 * torch.randn(1, heads, 1, head_dim)).to(dtype)


def lossless(dense: torch.Tensor, role: str = "key", start=None) -> InnerQTensor:
    return InnerQTensor.from_dense(dense, InnerQConfig.preset("lossless", **SMALL_WINDOWS), role=role, start=start)


def saved_and_loaded(value, **kwargs):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **kwargs)


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, atol: float = 0.0) -> None:
    actual = actual.dequantize() if isinstance(actual, InnerQTensor) else actual
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


CROPS = {
    "[..., :-k, :]": lambda t, n: t[..., : n - t.shape[2], :] if n < t.shape[2] else t[...],
    "[:, :, :n]": lambda t, n: t[:, :, :n],
    "[:, :, :n, :]": lambda t, n: t[:, :, :n, :],
    "narrow": lambda t, n: t.narrow(2, 0, n),
    "narrow(-2)": lambda t, n: t.narrow(-2, 0, n),
    "torch.narrow": lambda t, n: torch.narrow(t, 2, 0, n),
}
#: The same for caches that are kept as [B, S, H, D].
CROPS_BSHD = {
    "[..., :-k, :, :]": lambda t, n: t[..., : n - t.shape[1], :, :] if n < t.shape[1] else t[...],
    "[:, :n]": lambda t, n: t[:, :n],
    "[:, :n, :, :]": lambda t, n: t[:, :n, :, :],
    "narrow": lambda t, n: t.narrow(1, 0, n),
    "narrow(-3)": lambda t, n: t.narrow(-3, 0, n),
    "torch.narrow": lambda t, n: torch.narrow(t, 1, 0, n),
}
COPIES = {
    "clone": lambda t: t.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "save": saved_and_loaded,
    "to(copy=True)": lambda t: t.to(t.dtype, copy=True),
}
VIEWS = {
    "detach": lambda t: t.detach(),
    "[:]": lambda t: t[:],
    "contiguous": lambda t: t.contiguous(),
    "to(cpu)": lambda t: t.to("cpu"),
    "copy.copy": copy.copy,
}


def swapped(dense: torch.Tensor, tokens_dim: int) -> torch.Tensor:
    """``[B, H, S, D]`` to the layout with its tokens along ``tokens_dim``, or back."""
    return dense if tokens_dim == 2 else dense.transpose(1, 2)
