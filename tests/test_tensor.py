"""InnerQTensor without the compiler: what eager programs do with a cache, against a dense tensor and the method."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from innerq_compile import InnerQConfig, InnerQError, InnerQTensor, UnsupportedOperation
from innerq_compile.kernels import cpu, reference
from innerq_compile.storage import storage_bytes
from transformers import DynamicCache

from .cache_models import DenseCache, MethodCache, bytes_needed

HEADS, HEAD_DIM = 2, 16
ROLES = ("key", "value")
#: Windows so small that a few dozen tokens leave them.
SMALL_WINDOWS = {"sink": 4, "recent": 8}


@pytest.fixture(autouse=True, scope="module")
def plain_torch():
    """The operators run in plain torch: C++ for each of the formats here would take its time to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: False)
        yield


def random_cache(tokens: int, batch: int = 2, heads: int = HEADS, head_dim: int = HEAD_DIM, dtype=torch.float32):
    """Keys with large constant channels, which the key statistics are for."""
    return (torch.randn(batch, heads, tokens, head_dim) + 3 * torch.randn(1, heads, 1, head_dim)).to(dtype)


def lossless(dense: torch.Tensor, role: str = "key", start=None) -> InnerQTensor:
    return InnerQTensor.from_dense(dense, InnerQConfig.preset("lossless", **SMALL_WINDOWS), role=role, start=start)


def method_twin(tensor: InnerQTensor, dense: torch.Tensor, start: list[int]) -> MethodCache:
    inner = tensor.inner_tensors()
    return MethodCache.of(dense, tensor.format, start, inner.get("mean"), inner.get("norm"))


def saved_and_loaded(value, **kwargs):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **kwargs)


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    actual = actual.dequantize() if isinstance(actual, InnerQTensor) else actual
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# --- any sequence of operations ----------------------------------------------------------------------------------

CROPS = {
    "[..., :-k, :]": lambda t, n: t[..., : n - t.shape[2], :] if n < t.shape[2] else t[...],
    "[:, :, :n]": lambda t, n: t[:, :, :n],
    "[:, :, :n, :]": lambda t, n: t[:, :, :n, :],
    "narrow": lambda t, n: t.narrow(2, 0, n),
    "narrow(-2)": lambda t, n: t.narrow(-2, 0, n),
    "torch.narrow": lambda t, n: torch.narrow(t, 2, 0, n),
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


def select(tensor, rows: list[int], how: str):
    index = torch.tensor(rows)
    if how == "index_select":
        return tensor.index_select(0, index)
    return tensor[index] if how == "[index]" else tensor[index, ...]


class CacheMachine(RuleBasedStateMachine):
    """Caches that grow, are cropped, branch, are reordered and copied; every one always reads as its twin does."""

    caches = Bundle("caches")
    preset, roles, make_twin = "lossless", ROLES, staticmethod(lambda tensor, dense, start: DenseCache(dense))

    @initialize(seed=st.integers(0, 2**31 - 1))
    def seed(self, seed):
        torch.manual_seed(seed)
        self.live = []

    def keep(self, tensor, twin):
        assert isinstance(tensor, InnerQTensor)
        self.live.append((tensor, twin))
        return tensor, twin

    @rule(
        target=caches,
        role=st.sampled_from(ROLES),
        tokens=st.integers(0, 90),
        paddings=st.lists(st.integers(0, 40), min_size=1, max_size=3),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    )
    def prefill(self, role, tokens, paddings, dtype):
        paddings = [min(padding, tokens) for padding in paddings]
        dense = random_cache(tokens, batch=len(paddings), dtype=dtype)
        for row, padding in enumerate(paddings):
            dense[row, :, :padding] = 0
        config = InnerQConfig.preset(self.preset, **SMALL_WINDOWS)
        tensor = InnerQTensor.from_dense(dense, config, role=role, start=torch.tensor(paddings))
        return self.keep(tensor, self.make_twin(tensor, dense, paddings))

    @rule(target=caches, cache=caches, counts=st.lists(st.integers(0, 50), min_size=1, max_size=3))
    def append(self, cache, counts):
        past, twin = cache
        news = [random_cache(count, batch=past.shape[0], dtype=past.dtype) for count in counts]
        made = torch.cat([past, *news], dim=-2)
        return self.keep(made, twin.append(torch.cat(news, dim=2), in_place=made._storage is past._storage))

    @rule(target=caches, cache=caches, data=st.data(), how=st.sampled_from(sorted(CROPS)))
    def crop(self, cache, data, how):
        past, twin = cache
        # not into the padding
        length = data.draw(st.integers(int(past.inner_tensors()["state"][..., 0].max()), past.shape[2]), "length")
        return self.keep(CROPS[how](past, length), twin.crop(length))

    @rule(
        target=caches,
        cache=caches,
        data=st.data(),
        how=st.sampled_from(["index_select", "[index]", "[index, ...]", "[mask]", "[a:b]", "repeat_interleave"]),
    )
    def choose(self, cache, data, how):
        past, twin = cache
        batch = past.shape[0]
        if how == "repeat_interleave":
            rows = [row for row in range(batch) for _ in range(2)]
            made = past.repeat_interleave(2, dim=0)
        elif how == "[a:b]":
            a, b = sorted(data.draw(st.tuples(st.integers(0, batch), st.integers(0, batch)), "a, b"))
            if a == b:
                a, b = 0, 1
            rows, made = list(range(a, b)), past[a:b]
        elif how == "[mask]":
            mask = data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch).filter(any), "mask")
            rows, made = [row for row in range(batch) if mask[row]], past[torch.tensor(mask)]
        else:
            rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=3), "rows")
            made = select(past, rows, how)
        shared = made._storage is past._storage  # the whole batch: a view
        return self.keep(made, twin if shared else twin.select(rows))

    @rule(target=caches, cache=caches, how=st.sampled_from(sorted(COPIES)))
    def copy(self, cache, how):
        made = COPIES[how](cache[0])
        assert made._storage is not cache[0]._storage
        return self.keep(made, cache[1].copy() if how not in ("pickle", "save") else self.whole_copy(cache))

    def whole_copy(self, cache):
        """Saving writes the storage as it is, with the tokens behind the end of a view."""
        twin = cache[1]
        if isinstance(twin, MethodCache):
            return MethodCache(twin.fmt, [row.copy() for row in twin.rows], twin.length)
        return twin.copy()

    @rule(target=caches, cache=caches, how=st.sampled_from(sorted(VIEWS)))
    def view(self, cache, how):
        made = VIEWS[how](cache[0])
        assert made._storage is cache[0]._storage
        return self.keep(made, cache[1])

    @rule(cache=consumes(caches))
    def drop(self, cache):
        self.live = [pair for pair in self.live if pair[0] is not cache[0]]

    @invariant()
    def all_read_as_their_twins(self):
        for tensor, twin in self.live:
            assert_equal(tensor, twin.read())


class MethodMachine(CacheMachine):
    make_twin = staticmethod(method_twin)


def machine(preset: str):
    base = CacheMachine if preset == "lossless" else MethodMachine
    case = type(f"{preset}_machine", (base,), {"preset": preset}).TestCase
    case.settings = settings(max_examples=settings.default.max_examples, stateful_step_count=15)
    return case


TestLossless, TestBase, TestSmall, TestHybrid = map(machine, ["lossless", "base", "small", "hybrid"])
