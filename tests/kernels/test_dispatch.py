"""Which kernels serve a call is decided in one place, and every operator asks it."""

from __future__ import annotations

import inspect
import threading
import types

import pytest
import torch

from innerq_compile.kernels import cpu, dispatch, ops, reference, triton
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.backend import Kernel, KernelBackend, KernelChoice
from innerq_compile.kernels.reference import backend as reference_backend
from tests.helpers.strategies import make_format

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = [name for name, member in vars(KernelBackend).items() if callable(member) and not name.startswith("_")]
#: The operations that have kernels.
OPERATIONS = [name for name in NAMES if not name.startswith("supports_") and name != "decode_kernel"]


def a_cache(role: str):
    fmt = make_format(role, sink=4, recent=8, dtype=torch.float32)
    x = torch.randn(1, 2, 20, 32)
    return reference.prefill(x, torch.zeros(1, dtype=torch.int32), None, None, 4, fmt)


def a_call() -> AttentionCall[torch.Tensor]:
    return AttentionCall(torch.randn(1, 4, 1, 32), a_cache("key"), a_cache("value"), None, None, None, 0.2)


@pytest.fixture
def everything_allowed(monkeypatch):
    """Whatever the environment of the tests says of ``INNERQ_KERNELS``."""
    monkeypatch.setattr(dispatch, "reference_only", lambda: False)


@pytest.fixture
def recorder(monkeypatch) -> list[str]:
    """Names of the operations of a backend that serves everything, with the reference's results, as they are called."""
    called: list[str] = []

    def recorded(name):
        def operation(*args, **kwargs):
            called.append(name)
            return getattr(reference_backend, name)(*args, **kwargs)

        return operation

    backend = types.SimpleNamespace(**{name: recorded(name) for name in NAMES})
    monkeypatch.setattr(dispatch, "backend_for", lambda device: backend)
    return called


def call_operator(name: str) -> None:
    x, start = torch.randn(1, 2, 40, 32), torch.zeros(1, dtype=torch.int32)
    keys, values, new = a_cache("key"), a_cache("value"), torch.randn(1, 2, 1, 32)
    calls = {
        "key_statistics": lambda: ops.key_statistics(x, start, True, True),
        "prefill": lambda: ops.prefill(x, start, None, None, 4, keys.format.spec, keys.query_profile),
        "append_": lambda: ops.append_(keys, values, new, new),
        "append_one_": lambda: ops.append_one_(keys, new),
        "rewind_": lambda: ops.rewind_(keys, values, torch.tensor([10])),
        "decode_attention": lambda: torch.ops.innerq.decode_attention(*a_call().arguments()),
        "decode_attention_lse": lambda: torch.ops.innerq.decode_attention_lse(*a_call().arguments()),
        "row_linear": lambda: ops.row_linear(torch.randn(1, 32), [torch.randn(8, 32)], [None]),
    }
    calls[name]()


@pytest.mark.parametrize("name", [*OPERATIONS, "append_one_"])
def test_every_operator_asks_the_one_place(name, recorder):
    call_operator(name)
    served = name.replace("_one_", "_")
    asked = served.removesuffix("_").removesuffix("_lse").replace("_attention", "")
    assert recorder == [f"supports_{asked}"] * (2 if name in ("append_", "rewind_") else 1) + [served]


def test_statistics_of_a_write_ask_it_too(recorder):
    """A preallocated cache takes its key statistics where it is first written."""
    keys = a_cache("key")
    keys.mean, keys.norm = torch.zeros(1, 2, 32), torch.ones(1, 2, 32)
    ops.write_(keys, torch.randn(1, 2, 40, 32), torch.tensor([0]))
    assert [name for name in recorder if not name.startswith("supports_")] == ["key_statistics", "append_"]


@pytest.mark.parametrize("device", [CPU, CUDA, torch.device("meta")], ids=str)
def test_the_reference_serves_everything_where_it_is_asked_for(device, monkeypatch):
    monkeypatch.setattr(dispatch, "reference_only", lambda: True)
    assert dispatch.backend_for(device) is reference_backend


def test_each_device_has_its_kernels(everything_allowed, monkeypatch):
    assert dispatch.backend_for(CUDA) is triton
    monkeypatch.setattr(cpu, "available", lambda: True)
    assert dispatch.backend_for(CPU) is cpu
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert dispatch.backend_for(CPU) is reference_backend
    assert dispatch.backend_for(torch.device("meta")) is reference_backend


def test_what_a_backend_does_not_take_is_left_to_the_reference(everything_allowed):
    assert dispatch.choose(CUDA, lambda backend: False) is reference_backend
    assert dispatch.choose(CUDA, lambda backend: True) is triton


def test_what_serves_attention_is_said_with_its_reason(everything_allowed, monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: True)
    call = a_call()
    assert dispatch.decode_kernel(call) == KernelChoice(Kernel.CPP)
    other = AttentionCall(call.query.half(), call.keys, call.values, None, None, None, 0.2)
    assert dispatch.decode_kernel(other) == KernelChoice(Kernel.REFERENCE, "query and cache differ in dtype")
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert dispatch.decode_kernel(call) == KernelChoice(Kernel.REFERENCE, "no C++ compiler, or INNERQ_CPU_KERNELS=0")
    on_meta = call.map(lambda tensor: tensor.to("meta"))
    assert dispatch.decode_kernel(on_meta) == KernelChoice(Kernel.REFERENCE, "there are no kernels for meta")
    monkeypatch.setattr(dispatch, "reference_only", lambda: True)
    assert dispatch.decode_kernel(call) == KernelChoice(Kernel.REFERENCE, "INNERQ_KERNELS=reference")


@pytest.mark.parametrize("backend", [triton, cpu, reference_backend], ids=lambda backend: backend.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_backend_has_what_the_protocol_lists(backend, name):
    wanted = [*inspect.signature(getattr(KernelBackend, name)).parameters][1:]
    found = inspect.signature(getattr(backend, name)).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in found.values()):
        return
    assert [*found][: len(wanted)] == wanted
    assert all(parameter.default is not parameter.empty for parameter in [*found.values()][len(wanted) :])


def test_plain_torch_in_one_thread(everything_allowed, monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: True)
    seen: list[object] = []
    with dispatch.plain_torch():
        thread = threading.Thread(target=lambda: seen.append(dispatch.backend_for(CPU)))
        thread.start()
        thread.join()
        seen += [dispatch.backend_for(CPU), dispatch.backend_for(CUDA)]
    assert seen == [cpu, reference_backend, reference_backend]
    assert [dispatch.backend_for(CPU), dispatch.backend_for(CUDA)] == [cpu, triton]
