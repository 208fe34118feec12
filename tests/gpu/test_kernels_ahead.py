"""Triton compiles the kernels of operators beside Inductor, and once for all lengths."""

from __future__ import annotations

import threading

import pytest
import torch

triton = pytest.importorskip("triton")

from innerq_compile import innerq  # noqa: E402
from tests.helpers.models import tiny_llama  # noqa: E402

pytestmark = pytest.mark.gpu

#: The part of the names of kernels that operators launch.
OURS = ("prefill_fwd", "append_fwd", "key_statistics", "key_moments")


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Kernels that Triton compiles for operators, each with the name of the thread that does it."""
    found: list[tuple[str, str]] = []

    def listener(*, src, **_):
        name = getattr(getattr(src, "fn", None), "__name__", "")
        if name.startswith(OURS):
            found.append((name, threading.current_thread().name))

    monkeypatch.setattr(triton.knobs.compilation, "listener", listener)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    return found


def generated(model, length: int) -> None:
    ids = torch.randint(0, model.config.vocab_size, (1, length), device="cuda")
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)


def test_beside_inductor_and_once(compiled):
    # of a head_dim that no other test in this process has
    model = innerq(tiny_llama(layers=2, head_dim=96).to("cuda", torch.bfloat16), preset="base")
    generated(model, 160)
    assert {"prefill_fwd_kernel", "append_fwd_kernel"} <= {name for name, _ in compiled}
    assert {thread.startswith("innerq-kernels") for _, thread in compiled} == {True}, compiled
    before = len(compiled)
    for length in (161, 200, 256, 1000, 1023):
        generated(model, length)
    assert compiled[before:] == []
