"""Whether the values of a call are of the kinds that guards are on."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.source import AttrSource, DictGetItemSource, GetItemSource, LocalSource
from torch._guards import Guard, Source

from innerq_compile.kernels.internals.guarded_values import outline_of

CACHE = LocalSource("cache")
KEYS = AttrSource(GetItemSource(AttrSource(CACHE, "layers"), 0), "keys")
SOURCES: list[tuple[Source, Any]] = [
    (KEYS, GuardBuilder.TENSOR_MATCH),
    (DictGetItemSource(LocalSource("options"), "causal"), GuardBuilder.CONSTANT_MATCH),
    (DictGetItemSource(LocalSource("options"), "cache"), GuardBuilder.TYPE_MATCH),
]
GUARDS = [Guard(source, create) for source, create in SOURCES]


def scope(keys=None, **options):
    keys = torch.zeros(1, 2, 3) if keys is None else keys
    layers = [SimpleNamespace(keys=keys)]
    return {"cache": SimpleNamespace(layers=layers), "options": {"causal": True, "cache": 1, **options}}


OUTLINE = outline_of(GUARDS, scope())


@pytest.mark.parametrize("call", [scope(), scope(torch.ones(4, 5, 6)), scope(cache=2), scope(other=None)])
def test_values_of_the_same_kinds(call):
    assert OUTLINE.fits(call)


@pytest.mark.parametrize(
    "call",
    [
        scope(torch.zeros(2, 3)),
        scope(torch.zeros(1, 2, 3, dtype=torch.float16)),
        scope(torch.nn.Parameter(torch.zeros(1, 2, 3))),
        scope("none"),
        scope(causal=False),
        scope(causal=1),
        scope(cache="1"),
        {"cache": None, "options": {}},
        {"cache": SimpleNamespace(layers=[]), "options": {"causal": True, "cache": 1}},
        {},
    ],
)
def test_values_of_other_kinds(call):
    assert not OUTLINE.fits(call)


def test_looking_changes_nothing():
    options = defaultdict(int, causal=True)
    assert not OUTLINE.fits({**scope(), "options": options})
    assert dict(options) == {"causal": True}


def test_properties_that_fail():
    class Layer:
        @property
        def keys(self):
            raise RuntimeError("there are none")

    assert not OUTLINE.fits({**scope(), "cache": SimpleNamespace(layers=[Layer()])})
