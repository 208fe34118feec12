"""How graphs run: kernel by kernel or recorded, and by whom. Where recording is possible, it is emulated on a CPU."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from innerq_compile import InnerQError, compiled_graphs, innerq
from innerq_compile.compiler import backend
from innerq_compile.compiler.analysis import Analysis
from innerq_compile.compiler.execution import Execution, Recorder
from innerq_compile.kernels.internals.dynamo_graphs import copy_graph, static
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.analysis import recordable
from tests.helpers.emulated_graphs import emulated  # noqa: F401
from tests.helpers.programs import TinyAttention
from tests.helpers.without_inductor import as_it_is, without_inductor

CUDA_GRAPHS = "triton.cudagraphs"


@dataclasses.dataclass
class Chosen:
    """What was chosen for each graph, and the options with which Inductor was to compile each."""

    executions: list[tuple[Analysis, Execution]]
    options: list[dict]

    @property
    def decode(self) -> tuple[Analysis, Execution]:
        return self.executions[-1]


@pytest.fixture
def chosen(fresh_dynamo, monkeypatch):
    found, choose = [], backend.choose_execution

    def choosing(analysis, options):
        found.append((analysis, choose(analysis, options)))
        return found[-1][1]

    monkeypatch.setattr(backend, "choose_execution", choosing)
    with without_inductor(as_it_is) as options:
        yield Chosen(found, options)


@torch.no_grad()
def run(model, steps: int = 3) -> torch.Tensor:
    """The outputs of a prompt and some steps with a mask, which depends on the length of the cache."""
    torch.manual_seed(0)
    outs, cache = [], None
    for begin, end in [(0, 66), *((at, at + 1) for at in range(66, 66 + steps))]:
        mask = torch.ones(end - begin, end, dtype=torch.bool).tril(begin)
        out, cache = model(torch.randn(1, end - begin, 32), cache, mask)
        outs.append(out)
    return torch.cat(outs, 1)


def code(gm) -> str:
    return gm.print_readable(print_output=False)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("options", "recorder", "said"),
    [
        ({}, Recorder.INNERQ, "yes; by default"),
        ({"cuda_graphs": True}, Recorder.INNERQ, "yes; by default"),
        ({"mode": "default"}, Recorder.INNERQ, "yes; by default"),
        ({"max_autotune": True}, Recorder.INNERQ, "yes; by default"),
        ({"mode": "reduce-overhead"}, Recorder.INNERQ, "yes"),
        ({"mode": "max-autotune"}, Recorder.INNERQ, "yes"),
        ({CUDA_GRAPHS: True}, Recorder.INNERQ, "yes"),
        ({"cuda_graphs": False}, Recorder.NONE, "switched off"),
        ({CUDA_GRAPHS: False}, Recorder.NONE, "switched off"),
        ({"mode": "max-autotune-no-cudagraphs"}, Recorder.NONE, "switched off"),
        ({"mode": "reduce-overhead", "cuda_graphs": False}, Recorder.NONE, "switched off"),
        ({"mode": "reduce-overhead", CUDA_GRAPHS: False}, Recorder.NONE, "switched off"),
        ({CUDA_GRAPHS: True, "cuda_graphs": False}, Recorder.NONE, "switched off"),
    ],
    ids=str,
)
def test_options(chosen, options, recorder, said):
    """Inductor records nothing in any of these cases."""
    run(torch.compile(TinyAttention(), backend="innerq", options=options))
    analysis, execution = chosen.decode
    assert execution.recorder is recorder
    assert (analysis.prelude is not None) == (recorder is Recorder.INNERQ)
    assert str(compiled_graphs()[-1].cuda_graphs) == said
    assert not any(options.get(CUDA_GRAPHS) for options in chosen.options)
    assert compiled_graphs()[-1].recorded == (recorder is Recorder.INNERQ)


@pytest.mark.usefixtures("emulated")
def test_the_configuration_of_the_process(chosen):
    with torch._inductor.config.patch({"triton.cudagraphs": True}):
        run(innerq(TinyAttention()))
        assert str(compiled_graphs()[-1].cuda_graphs) == "yes"
        torch._dynamo.reset()
        run(innerq(TinyAttention(), cuda_graphs=False))
    assert str(compiled_graphs()[-1].cuda_graphs) == "switched off"
    assert all(options[CUDA_GRAPHS] is False for options in chosen.options if options)


def test_the_configuration_of_the_process_asks_inductor(chosen):
    """For what is not recorded here, as everything on a CPU."""
    with torch._inductor.config.patch({"triton.cudagraphs": True}):
        run(innerq(TinyAttention()))
    assert chosen.decode[1].recorder is Recorder.INDUCTOR
    assert chosen.options[-1] == {CUDA_GRAPHS: True}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("target", ["model", "function", "class"])
def test_every_way_to_compile(chosen, target):
    model = TinyAttention()
    if target == "model":
        run(innerq(model))
    elif target == "function":
        run(innerq(lambda *args: model(*args)))
    else:
        run(innerq(type("Attention", (TinyAttention,), {}))())
    assert chosen.decode[1].recorder is Recorder.INNERQ


@pytest.mark.parametrize("value", [1, None, "no"])
def test_wrong_values(value):
    with pytest.raises(InnerQError, match=f"cuda_graphs={value!r} is not allowed: it has to be True or False"):
        innerq(TinyAttention(), cuda_graphs=value)


def test_not_on_a_gpu(chosen):
    """Graphs are those that they are with CUDA graphs switched off, and Inductor gets no option."""
    run(innerq(TinyAttention()))
    analysis, execution = chosen.decode
    assert (execution.recorder, execution.inductor_options) == (Recorder.NONE, {})
    assert analysis.prelude is None and not analysis.context.static_lengths
    assert str(compiled_graphs()[-1].cuda_graphs) == "no: nothing in this graph is on a CUDA device"
    torch._dynamo.reset()
    run(innerq(TinyAttention(), cuda_graphs=False))
    assert code(chosen.decode[0].rewritten) == code(analysis.rewritten)


class Adding(TinyAttention):
    """Adds numbers of the host, which a CUDA graph would keep."""

    def forward(self, x, past=None, mask=None):
        out, cache = super().forward(x, past, mask)
        return out + torch.tensor([0.5, 0.25])[0], cache


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("options", "recorder", "said"),
    [
        ({}, Recorder.NONE, "no: .*it copies data from the host to the device"),
        ({"mode": "reduce-overhead"}, Recorder.INDUCTOR, "no: nothing in this graph is on a CUDA device"),
        ({"cuda_graphs": False}, Recorder.NONE, "switched off"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_as_a_whole(chosen, options, recorder, said):
    """It is left to Inductor on request only. Otherwise the lengths stay in the graph: no prelude runs in vain."""
    torch.manual_seed(1)
    model = Adding()
    expected = run(model)
    found = run(torch.compile(model, backend="innerq", options={"preset": "lossless", **options}))
    torch.testing.assert_close(found, expected)
    analysis, execution = chosen.decode
    assert execution.recorder is recorder
    report = compiled_graphs()[-1]
    assert re.match(said, str(report.cuda_graphs)), str(report.cuda_graphs)
    asked = recorder is Recorder.INDUCTOR
    assert (analysis.prelude is not None) == asked
    codes = next(analysis.context.cache_inputs()).tensors.codes
    assert bool(static(codes)) == asked, "Inductor relies on the alignment of inputs that keep their address"
    if not asked:
        plain = PIPELINE.rewrite(copy_graph(analysis.captured), analysis.config)
        assert code(plain.gm) == code(analysis.rewritten)
        assert [str(reason) for reason in report.reasons] == []


@pytest.mark.usefixtures("emulated")
def test_prompts_and_plain_graphs_run_as_ever(chosen):
    run(innerq(TinyAttention()), steps=0)
    plain = torch.compile(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), backend="innerq")
    with torch.no_grad():
        plain(torch.randn(2, 4))
    assert [execution.recorder for _, execution in chosen.executions] == [Recorder.NONE] * 2
    assert chosen.options == [{}, {}]
    assert [str(report.cuda_graphs) for report in compiled_graphs()] == [
        "no: a prefill runs once, and its caches outlive the memory pool of a CUDA graph",
        "no: this graph has no quantized cache",
    ]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", ["hoist_lengths", "index_writes"])
def test_without_a_pass_that_recording_needs(chosen, name):
    run(innerq(TinyAttention(), disabled_passes=name))
    assert chosen.decode[1].recorder is Recorder.NONE
    assert str(compiled_graphs()[-1].cuda_graphs) == f"no: no CUDA graph can serve all lengths without {name}"


def test_the_device_that_records():
    assert recordable.DEVICE == "cuda"
