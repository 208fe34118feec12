"""Any sequence of operations on InnerQTensors, against dense tensors and against the method written a second time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from innerq_compile import InnerQConfig, InnerQTensor
from tests.helpers.cache_models import DenseCache, MethodCache
from tests.helpers.small_caches import (
    COPIES,
    CROPS,
    CROPS_BSHD,
    ROLES,
    SMALL_WINDOWS,
    VIEWS,
    assert_equal,
    random_cache,
    swapped,
)

pytestmark = pytest.mark.usefixtures("plain_torch")


def method_twin(tensor: InnerQTensor, dense: torch.Tensor, start: list[int]) -> MethodCache:
    inner = tensor.inner_tensors()
    return MethodCache.of(dense, tensor.format, start, inner.get("mean"), inner.get("norm"))


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
        tokens_dim=st.sampled_from([2, 1]),
    )
    def prefill(self, role, tokens, paddings, dtype, tokens_dim):
        paddings = [min(padding, tokens) for padding in paddings]
        dense = random_cache(tokens, batch=len(paddings), dtype=dtype)
        for row, padding in enumerate(paddings):
            dense[row, :, :padding] = 0
        config = InnerQConfig.preset(self.preset, **SMALL_WINDOWS)
        start, kept = torch.tensor(paddings), swapped(dense, tokens_dim)
        tensor = InnerQTensor.from_dense(kept, config, role=role, start=start, tokens_dim=tokens_dim)
        assert tensor.shape == kept.shape
        return self.keep(tensor, self.make_twin(tensor, dense, paddings))

    @rule(target=caches, cache=caches, counts=st.lists(st.integers(0, 50), min_size=1, max_size=3))
    def append(self, cache, counts):
        past, twin = cache
        news = [random_cache(count, batch=past.shape[0], dtype=past.dtype) for count in counts]
        made = torch.cat([past, *(swapped(new, past.tokens_dim) for new in news)], dim=past.tokens_dim - 4)
        return self.keep(made, twin.append(torch.cat(news, dim=2), in_place=made._storage is past._storage))

    @rule(target=caches, cache=caches, data=st.data())
    def crop(self, cache, data):
        past, twin = cache
        crops = CROPS if past.tokens_dim == 2 else CROPS_BSHD
        how = data.draw(st.sampled_from(sorted(crops)), "how")
        length = data.draw(st.integers(0, past.shape[past.tokens_dim]), "length")
        return self.keep(crops[how](past, length), twin.crop(length))

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
            assert_equal(tensor, swapped(twin.read(), tensor.tokens_dim))


class MethodMachine(CacheMachine):
    make_twin = staticmethod(method_twin)


def machine(preset: str):
    base = CacheMachine if preset == "lossless" else MethodMachine
    case = type(f"{preset}_machine", (base,), {"preset": preset}).TestCase
    case.settings = settings(max_examples=settings.default.max_examples // 3, stateful_step_count=12)
    return case


TestLossless, TestBase, TestSmall, TestHybrid = map(machine, ["lossless", "base", "small", "hybrid"])
