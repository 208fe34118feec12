"""Copies of a compiled model are compiled, as it is itself."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from innerq_compile import InnerQTensor, innerq
from tests.helpers.programs import TinyAttention

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")


@innerq(preset="small")
class Compiled(TinyAttention):
    """A class whose instances are compiled."""


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def cache_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.ones(1, 40, 32))[1][1]


@pytest.mark.parametrize("make", [lambda: innerq(TinyAttention(), preset="small"), Compiled], ids=["innerq", "class"])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_is_compiled(copied, make):
    """Also before the first call, and a copy of a copy; with the options and the weights."""
    model = make()
    first = copied(model)
    second = copied(first)
    second.v.weight.data += 1
    caches = [cache_of(one) for one in (model, first, second)]
    assert [isinstance(cache, InnerQTensor) and cache.format.bits == 2 for cache in caches] == [True] * 3
    torch.testing.assert_close(caches[1].dequantize(), caches[0].dequantize())
    assert not torch.allclose(caches[2].dequantize(), caches[0].dequantize(), atol=0.5)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_part_of_what_is_copied(copied):
    made = copied(nn.ModuleList([innerq(TinyAttention()), TinyAttention()]))
    assert [isinstance(cache_of(one), InnerQTensor) for one in made] == [True, False]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_not_compiled_any_more(copied):
    model = innerq(TinyAttention())
    model._compiled_call_impl = None
    assert not isinstance(cache_of(copied(model)), InnerQTensor)


def test_a_shallow_copy_is_its_own():
    """It is uncompiled, and no copy of it compiles the model that it was made of."""
    model = innerq(TinyAttention())
    shallow = copy.copy(model)
    assert not isinstance(cache_of(copy.deepcopy(shallow)), InnerQTensor)
    assert isinstance(cache_of(model), InnerQTensor)


def test_options_that_cannot_be_pickled(caplog):
    model = innerq(TinyAttention(), post_grad_custom_pre_pass=lambda graph: None)
    assert isinstance(cache_of(copy.deepcopy(model)), InnerQTensor)
    loaded = pickled(model)
    assert "what is loaded from this pickle is not compiled" in caplog.text
    assert not isinstance(cache_of(loaded), InnerQTensor)
