"""A call that is interrupted leaves the caches as they were, so that it can be made again."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import innerq
from innerq_compile.runtime.call import CompiledGraph
from tests.helpers.programs import TinyAttention

PROMPT = 300


class Interrupting:
    """Lets compiled graphs raise ``error``, where it is set, after their work."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.error: BaseException | None = None
        real = CompiledGraph.__init__

        def init(graph, compiled, *args):
            def call(*inputs):
                results = compiled(*inputs)
                if self.error is not None:
                    raise self.error
                return results

            real(graph, call, *args)

        patch.setattr(CompiledGraph, "__init__", init)


@pytest.mark.sampled(4)
@torch.no_grad()
@pytest.mark.usefixtures("no_inductor")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("no memory")], ids=["user", "memory"])
@pytest.mark.parametrize("tokens", [1, 40, 200])
@pytest.mark.parametrize("steps", [0, 2], ids=["first", "known"])
def test_a_call_that_is_interrupted_can_be_made_again(monkeypatch, error, tokens, steps):
    interrupting = Interrupting(monkeypatch)
    torch.manual_seed(0)
    eager, compiled = TinyAttention(), TinyAttention()
    compiled.load_state_dict(eager.state_dict())
    innerq(compiled, preset="lossless")
    x = torch.randn(1, PROMPT + steps + tokens + 1, 32)
    pasts = [model(x[:, :PROMPT])[1] for model in (eager, compiled)]
    at = PROMPT
    for count in [1] * steps + [tokens, 1]:
        new = x[:, at : at + count]
        mask = torch.ones(count, at + count, dtype=torch.bool).tril(at)
        if count == tokens:
            interrupting.error = error
            with pytest.raises(type(error)):
                compiled(new, pasts[1], mask)
            interrupting.error = None
        (expected, past), (out, held) = eager(new, pasts[0], mask), compiled(new, pasts[1], mask)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        pasts, at = [past, held], at + count
