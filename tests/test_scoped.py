"""Values that hold inside ``with`` blocks, in threads."""

from __future__ import annotations

import threading

from innerq_compile.scoped import Scoped


def values_of_another_thread(scoped: Scoped) -> tuple:
    found = []
    thread = threading.Thread(target=lambda: found.append(scoped.values()))
    thread.start()
    thread.join(60)
    return found[0]


def test_blocks_within_one_another():
    scoped: Scoped[str] = Scoped("test")
    assert scoped.values() == scoped.opened == ()
    with scoped.holding("outer"):
        with scoped.holding("inner"):
            assert scoped.values() == ("outer", "inner")
        assert scoped.values() == ("outer",)
    assert scoped.values() == scoped.opened == ()


def test_a_thread_without_a_block_sees_those_of_others():
    scoped: Scoped[str] = Scoped("test")
    with scoped.holding("ours"):
        assert values_of_another_thread(scoped) == ("ours",)
    assert values_of_another_thread(scoped) == ()


def test_threads_with_blocks_of_their_own():
    """Many at once, which end in another order than they began."""
    scoped: Scoped[int] = Scoped("test")
    count, wrong = 8, []
    barrier = threading.Barrier(count, timeout=60)

    def work(number: int) -> None:
        for turn in range(50):
            barrier.wait()
            with scoped.holding(number):
                if scoped.values() != (number,) or number not in scoped.opened:
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and scoped.opened == ()
