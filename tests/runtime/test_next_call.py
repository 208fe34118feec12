"""What is known of the caches of the next step before it is called, and when that is forgotten."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerq_compile import InnerQTensor, innerq
from innerq_compile.runtime.next_call import NextCall
from tests.helpers.programs import TinyAttention

pytestmark = pytest.mark.usefixtures("no_inductor_in_module")
PROMPT = 70


class Watched:
    """A compiled decoder beside an eager one, with a list of whether each decode step's caches were known."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        self.eager = TinyAttention()
        self.compiled = TinyAttention()
        self.compiled.load_state_dict(self.eager.state_dict())
        innerq(self.compiled, preset="lossless")
        self.known: list[bool] = []
        real = NextCall.take

        def known(call, args):
            found = real(call, args)
            self.known.append(bool(found))
            return found

        patch.setattr(NextCall, "take", known)

    @torch.no_grad()
    def step(self, past, tokens: int = 1):
        """The caches after a step behind ``past``, a pair of compiled and eager caches; outputs are compared."""
        x = torch.randn(1, tokens, 32)
        results = [model(x, cache) for model, cache in zip((self.compiled, self.eager), past, strict=True)]
        torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
        return tuple(cache for _, cache in results)

    def start(self):
        return self.step((None, None), PROMPT)


@pytest.fixture(scope="module")
def watched():
    with pytest.MonkeyPatch.context() as patch:
        yield Watched(patch)


def run(watched, past, count):
    watched.known.clear()
    for _ in range(count):
        past = watched.step(past)
    return past, list(watched.known)


def test_steps_behind_one_another_are_known(watched):
    past, known = run(watched, watched.start(), 40)
    assert known[0] is False, "what a prompt makes comes from another graph"
    assert all(known[1:]) or known[1:].count(False) == 1, "but where the storage grows"
    assert isinstance(past[0][0], InnerQTensor)


def test_what_happens_in_between_is_seen(watched):
    past, _ = run(watched, watched.start(), 3)
    kept = past
    past, known = run(watched, past, 2)
    assert known == [True, True]
    _, known = run(watched, kept, 2)  # from an earlier cache: it is copied
    assert known == [False, True]
    past, known = run(watched, tuple((k[:, :, :-1], v[:, :, :-1]) for k, v in past), 2)
    assert known == [False, True]
    extra = torch.randn(1, 1, 2, 16)
    past = tuple((torch.cat([k, extra], 2), torch.cat([v, extra], 2)) for k, v in past)
    past, known = run(watched, past, 2)
    assert known == [False, True]
    past, known = run(watched, tuple((k.clone(), v.clone()) for k, v in past), 2)
    assert known == [False, True]


def test_nothing_is_kept_of_a_cache_that_is_dropped(watched):
    past, known = run(watched, watched.start(), 3)
    assert known[-1]
    inner = [weakref.ref(tensor) for side in past[0] for tensor in side.inner_tensors().values()]
    assert all(tensor() is not None for tensor in inner)
    del past
    assert all(tensor() is None for tensor in inner)


def test_nothing_is_kept_of_a_storage_that_grows_elsewhere(watched):
    past, known = run(watched, watched.start(), 3)
    assert known[-1]
    before = [weakref.ref(side.inner_tensors()["codes"]) for side in past[0]]
    extra = torch.randn(1, 1, 2000, 16)
    past = tuple((torch.cat([k, extra], 2), torch.cat([v, extra], 2)) for k, v in past)
    assert all(codes() is None for codes in before)
    _, known = run(watched, past, 2)
    assert known == [False, True]


def test_tensors_that_change_places(watched):
    """``swap_tensors`` leaves them where they are, and gives each what the other was."""
    first, _ = run(watched, watched.start(), 3)
    second, known = run(watched, watched.start(), 3)
    assert known[-1]
    for a, b in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        torch.utils.swap_tensors(a, b)
    _, known = run(watched, second, 2)
    assert known == [False, True]


def test_growing(watched):
    """A cache that outgrows its storage has other tensors."""
    past = watched.start()
    capacity = past[0][0].inner_tensors()["codes"].shape[2]
    past, known = run(watched, past, 300)
    assert past[0][0].inner_tensors()["codes"].shape[2] > capacity
    assert 2 <= known.count(False) <= 8


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["step", "step", "crop", "back", "append", "clone", "prompt"]), max_size=14))
def test_any_order(watched, actions):
    """Whatever a program does with its caches, a step gives what it gives with exact ones."""
    past = watched.start()
    history = [past]
    for action in actions:
        if action == "crop":
            past = tuple((k[:, :, : PROMPT - 5], v[:, :, : PROMPT - 5]) for k, v in past)
        elif action == "back":
            past = history[len(history) // 2]
        elif action == "append":
            extra = torch.randn(1, 1, 1, 16)
            past = tuple((torch.cat([k, extra], 2), torch.cat([v, extra], 2)) for k, v in past)
        elif action == "clone":
            past = tuple((k.clone(), v.clone()) for k, v in past)
        elif action == "prompt":
            past = watched.start()
        past = watched.step(past)
        history.append(past)
