"""A fixed sample of random programs, compiled against eager.

``python -m tests.helpers.random_programs`` runs many more.
"""

from __future__ import annotations

import pytest

from tests.helpers.random_programs import check, is_refusal, random_program
from tests.helpers.without_inductor import as_it_is, through_autograd, without_inductor

SAMPLE = range(32)


pytestmark = pytest.mark.usefixtures("one_thread", "plain_torch")  # of many formats


@pytest.mark.sampled(12)
@pytest.mark.parametrize("seed", SAMPLE, ids=lambda seed: f"seed{seed}")
def test_random_program(seed):
    with without_inductor(through_autograd if seed % 8 == 0 else as_it_is):
        verdict = check(random_program(seed))
    assert verdict.outcome in ("right", "refused"), str(verdict)


def test_generator_is_deterministic():
    assert [random_program(seed) for seed in SAMPLE] == [random_program(seed) for seed in SAMPLE]


def test_plain_programs_are_rewritten():
    """Otherwise the comparison with eager mode would show nothing."""
    plain = [p for p in map(random_program, range(400)) if p.ordinary and len(p.steps) == 3 and not p.buffers][:3]
    for program in plain:
        with without_inductor(as_it_is):
            verdict = check(program)
        assert verdict.outcome == "right" and verdict.rewritten == "fully", str(verdict)


def test_refusals_are_for_users():
    assert is_refusal(RuntimeError("innerq: no")) and not is_refusal(RuntimeError("no")) and not is_refusal(KeyError())
