"""A program that Dynamo does not compile any more is warned of, because its caches are dense."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQTensor
from tests.helpers.programs import TinyAttention

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")
WORDS = "Dynamo has reached its limit of 2 graphs"


@torch.no_grad()
def kinds_of_caches(backend: str, **options) -> list[bool]:
    """Whether caches are quantized, of prompts of which each needs a graph of its own."""
    model = torch.compile(TinyAttention(), backend=backend, dynamic=False, **options)
    with torch._dynamo.config.patch(recompile_limit=2):
        prompts = (torch.randn(1, tokens, 32) for tokens in (40, 41, 42, 43, 40))
        return [isinstance(model(prompt)[1][0], InnerQTensor) for prompt in prompts]


def test_one_warning(caplog):
    assert kinds_of_caches("innerq") == [True, True, False, False, True]
    (record,) = (record for record in caplog.records if WORDS in record.getMessage())
    assert record.levelname == "WARNING" and record.name == "innerq_compile.compiler.limits"
    assert "TORCH_LOGS=recompiles" in record.getMessage()
    assert "forward (" in record.getMessage() and "torch._dynamo.config.recompile_limit" in record.getMessage()


def test_where_dynamo_raises_an_error(caplog):
    with pytest.raises(Exception, match="fullgraph"):
        kinds_of_caches("innerq", fullgraph=True)
    assert WORDS not in caplog.text


def test_other_backends(caplog):
    assert not any(kinds_of_caches("eager"))
    assert WORDS not in caplog.text


@torch.no_grad()
def test_another_backend_has_reached_its_limit(caplog):
    """Dynamo compiles the program for this backend no more, either."""
    model, prompt = TinyAttention(), torch.randn(1, 40, 32)
    ours, other = (torch.compile(model, backend=name, dynamic=False) for name in ("innerq", "eager"))
    with torch._dynamo.config.patch(recompile_limit=2):
        assert isinstance(ours(prompt)[1][0], InnerQTensor)
        for tokens in (41, 42, 43, 44, 45):
            other(torch.randn(1, tokens, 32))
            assert (tokens > 42) == (WORDS in caplog.text)
        assert isinstance(ours(prompt)[1][0], InnerQTensor), "there is a graph for it"
        assert not isinstance(ours(torch.randn(1, 46, 32))[1][0], InnerQTensor)
    assert len([record for record in caplog.records if WORDS in record.getMessage()]) == 1


@torch.no_grad()
def test_one_warning_for_each_module(caplog):
    models = [torch.compile(TinyAttention(), backend="innerq", dynamic=False) for _ in range(2)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for tokens in range(40, 50):
            for model in models:
                model(torch.randn(1, tokens, 32))
    assert len([record for record in caplog.records if WORDS in record.getMessage()]) == 2


@torch.no_grad()
def test_programs_without_attention(caplog):
    program = torch.compile(lambda x: x + 1, backend="innerq", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (2, 3, 4):
            program(torch.zeros(size))
    assert WORDS not in caplog.text
