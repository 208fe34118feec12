"""A pass that raises an unforeseen exception is left out: the program stays right, and a report says what happened."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, empty_cache
from innerq_compile.compiler import analysis
from innerq_compile.passes import PIPELINE, Pipeline
from tests.helpers.programs import BufferAttention, TinyAttention

pytestmark = pytest.mark.passes_fail


class Broken(Exception):
    pass


def break_pass(monkeypatch, name: str) -> None:
    """Let a pass raise an error after it has changed the graph and the context."""

    def breaking(run):
        def broken(gm, context):
            run(gm, context)
            raise Broken("nobody thought of this")

        broken.__name__ = name
        return broken

    passes = [dataclasses.replace(p, run=breaking(p.run)) if p.name == name else p for p in PIPELINE.passes]
    monkeypatch.setattr(analysis, "PIPELINE", Pipeline(passes))


@pytest.fixture(autouse=True)
def cheap(graphs_as_they_are):
    torch.manual_seed(0)


def steps(run, mask) -> list[torch.Tensor]:
    torch.manual_seed(5)
    x, token, other = torch.randn(1, 150, 32), torch.randn(1, 1, 32), torch.randn(1, 1, 32)
    with torch.no_grad():
        first, cache = run(x, None, mask)
        second, cache = run(token, cache)
        third, cache = run(other, cache)
    return [first, second, third]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", PIPELINE.names())
def test_prompt_and_steps_stay_right(monkeypatch, caplog, name):
    model, mask = TinyAttention(), torch.ones(150, 150).tril().bool()
    break_pass(monkeypatch, name)
    with caplog.at_level(logging.ERROR, logger="innerq_compile.passes"):
        compiled = torch.compile(model, backend="innerq", options={"preset": "lossless"})
        torch.testing.assert_close(steps(compiled, mask), steps(model, mask))
    assert compiled_graphs() and all(name in report.left_out for report in compiled_graphs())
    assert f"the pass {name} failed with Broken: nobody thought of this; it is left out" in str(compiled_graphs()[0])
    assert next(record.exc_info[0] for record in caplog.records if record.name == "innerq_compile.passes") is Broken


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", PIPELINE.names())
def test_steps_with_a_quantized_cache_stay_right(monkeypatch, name):
    """The prompt is quantized; the pass fails in the graph of the step."""
    model, mask = TinyAttention(), torch.ones(150, 150).tril().bool()
    torch.manual_seed(5)
    x, token = torch.randn(1, 150, 32), torch.randn(1, 1, 32)
    compiled = torch.compile(model, backend="innerq", options={"preset": "lossless"})
    with torch.no_grad():
        _, expected_cache = model(x, None, mask)
        expected, expected_cache = model(token, expected_cache)
        _, cache = compiled(x, None, mask)
        assert isinstance(cache[0], InnerQTensor)
        clear_reports()
        break_pass(monkeypatch, name)
        out, cache = compiled(token, cache)
    torch.testing.assert_close(out, expected)
    for side, expected_side in zip(cache, expected_cache, strict=True):
        dense = side.dequantize() if isinstance(side, InnerQTensor) else side
        torch.testing.assert_close(dense, expected_side)
    (report,) = compiled_graphs()
    assert name in report.left_out and report.calls == 1
    required = name in PIPELINE.required
    assert (report.left_out == PIPELINE.names()) == required
    rewrites = not {"match_attention", "match_cache", "rewrite_decode"} & {*report.left_out}
    assert report.rewritten == (1 if rewrites else 0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", PIPELINE.names())
def test_steps_over_buffers_stay_right(monkeypatch, name):
    model = BufferAttention()
    break_pass(monkeypatch, name)
    results = []
    for run in (model, torch.compile(model, backend="innerq", options={"preset": "lossless"})):
        buffers = [torch.zeros(1, 1, 256, 16) for _ in range(2)]
        torch.manual_seed(5)
        outs, position = [], 0
        with torch.no_grad():
            for n in (150, 1, 1):
                at = torch.arange(position, position + n)
                mask = torch.arange(256)[None, :] <= at[:, None]
                outs.append(run(torch.randn(1, n, 32), at, *buffers, mask)[:, :, -1])
                position += n
        results.append([torch.stack(outs), *buffers])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["rewrite_buffer", "write_preallocated", "plan_outputs"])
def test_steps_over_quantized_buffers_stay_right(monkeypatch, name):
    model = BufferAttention()
    torch.manual_seed(5)
    inputs = [torch.randn(1, n, 32) for n in (150, 1, 1)]
    results = []
    for broken in (False, True):
        torch._dynamo.reset()
        if broken:
            break_pass(monkeypatch, name)
        compiled = torch.compile(model, backend="innerq", options={"preset": "lossless"})
        buffers = [empty_cache(1, 1, 256, 16, role=role, config="lossless") for role in ("key", "value")]
        outs, position = [], 0
        with torch.no_grad():
            for x in inputs:
                at = torch.arange(position, position + x.shape[1])
                mask = torch.arange(256)[None, :] <= at[:, None]
                outs.append(compiled(x, at, *buffers, mask)[:, :, -1])
                position += x.shape[1]
        results.append([torch.stack(outs), *(buffer.dequantize() for buffer in buffers)])
    torch.testing.assert_close(results[1], results[0])


def test_two_passes_that_fail_are_both_left_out(monkeypatch):
    model, mask = TinyAttention(), torch.ones(150, 150).tril().bool()
    break_pass(monkeypatch, "match_cache")
    monkeypatch.setattr("tests.passes.pipeline.test_runner.PIPELINE", analysis.PIPELINE)
    break_pass(monkeypatch, "hoist_lengths")
    compiled = torch.compile(model, backend="innerq", options={"preset": "lossless"})
    torch.testing.assert_close(steps(compiled, mask), steps(model, mask))
    assert compiled_graphs()[0].left_out == ("match_cache", "hoist_lengths")


def test_strict_raises_it(monkeypatch):
    model = TinyAttention()
    break_pass(monkeypatch, "rewrite_decode")
    compiled = torch.compile(model, backend="innerq", options={"preset": "lossless", "strict": True})
    with torch.no_grad(), pytest.raises(Exception, match="nobody thought of this"):
        compiled(torch.randn(1, 150, 32), None, torch.ones(150, 150).tril().bool())


def test_what_the_user_has_to_change_is_no_failure(caplog):
    model = TinyAttention(head_dim=16)
    compiled = torch.compile(model, backend="innerq", options={"group_size": 32})
    with torch.no_grad(), pytest.raises(ValueError, match="group_size=32 does not divide head_dim 16"):
        compiled(torch.randn(1, 150, 32), None, torch.ones(150, 150).tril().bool())
    assert not [record for record in caplog.records if record.name == "innerq_compile.passes"]


def test_who_watches_sees_the_passes_of_the_last_attempt(monkeypatch, tmp_path):
    from innerq_compile.inspect.dump import dump_graphs

    break_pass(monkeypatch, "plan_outputs")
    with dump_graphs(tmp_path), torch.no_grad():
        model = TinyAttention()
        torch.compile(model, backend="innerq")(torch.randn(1, 5, 32), None, torch.ones(5, 5).tril().bool())
    codes = sorted(path.name for path in tmp_path.rglob("*.py") if path.name[:2].isdigit())
    assert codes and codes[0] == "00_captured.py" and sum("captured" in name for name in codes) == 1
