"""A fixed sample of random programs, compiled against eager.

``python -m tests.helpers.random_programs`` runs many more.
"""

from __future__ import annotations

import dataclasses

import pytest

from tests.helpers.random_decoder import Program, Step
from tests.helpers.random_programs import Runner, check, is_refusal, main, random_program
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


KINDS = {
    "window": {"window": 3, "mask": "bool"},
    "latent": {"latent": "joint", "rotary": True},
    "slices": {"cut": "dots"},
    "slices of the past": {"cut": "past_dots"},
    "keywords": {"keywords": True, "kv_heads": 1, "repeat": "gqa"},
    "wrapper": {"wrapper": "nested", "greedy": True},
    "partial": {"wrapper": "partial", "head_dim": 36},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_rewritten(kind):
    program = Program(5, steps=(Step(7), Step(1), Step(1)), **KINDS[kind])
    with without_inductor(as_it_is):
        verdict = check(program)
    assert (verdict.outcome, verdict.rewritten) == ("right", "fully"), str(verdict)


RESTARTED = Program(6, cache="typed", mask="bool", write="index_copy", read="whole", position="tensor", windows=(0, 8))
STEPS = {
    "read_before": (Step(9), Step(1, "restart"), Step(1)),
    "write_after": (Step(9), Step(1, "restart"), Step(1)),
    "shared_layer": (Step(9), Step(1, "overwrite"), Step(1, "restart"), Step(1, "crop", 1)),
}


@pytest.mark.parametrize("trick", STEPS)
def test_a_buffer_forgets_where_it_is_written(trick):
    """It is read as it was until then, and a layer that is never written keeps what it was given."""
    layers = 2 if trick == "shared_layer" else 1
    with without_inductor(as_it_is):
        verdict = check(dataclasses.replace(RESTARTED, trick=trick, layers=layers, steps=STEPS[trick]))
    assert verdict.outcome == "right", str(verdict)


def test_a_buffer_that_is_written_anew_has_to_forget():
    """Else no comparison would find tokens of the text before, which a program may read behind its own."""
    program = dataclasses.replace(RESTARTED, trick="return_buffer", steps=(Step(9), Step(1, "restart")))
    runner = Runner(program, compiled=False)
    runner.run()
    held = [extra for name, extra in runner.outputs if "extra" in name]
    assert [int(x.abs().sum((0, 1, 3)).count_nonzero()) for x in held] == [9, 5, 6]
    with without_inductor(as_it_is):
        verdict = check(program)
    assert verdict.outcome == "right", str(verdict)


def test_all_kinds_are_drawn():
    drawn = {kind for seed in range(300) for kind in random_program(seed).kinds}
    assert drawn == {
        *("plain", "window", "latent", "odd head_dim", "slices", "keywords", "wrapper", "padding", "buffers", "a trick")
    }


def test_what_is_wrong_is_found():
    """A token that is another one, though all else is as it has to be."""

    def other(gm, example_inputs):
        run = as_it_is(gm, example_inputs)
        return lambda *args: [x.flip(-1) if n == 0 else x for n, x in enumerate(run(*args))]

    with without_inductor(other):
        verdict = check(Program(3, greedy=True))
    assert verdict.outcome == "wrong" and "step 0" in verdict.text


def test_a_run_that_has_no_time_says_how_to_go_on(capsys, monkeypatch):
    for name in ("INNERQ_TRACES", "INNERQ_PROGRESS", "INNERQ_CPU_KERNELS"):
        monkeypatch.setenv(name, "0")  # the command sets them
    assert main(["--count", "3", "--seed", "7", "--jobs", "1", "--seconds", "-1"]) == 0
    assert "go on with --seed 7 --count 3" in capsys.readouterr().out
