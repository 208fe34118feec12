"""A value for each thread that is alive."""

from __future__ import annotations

import gc
import threading

from innerq_compile.runtime.per_thread import PerThread


def in_a_thread(work):
    """What ``work`` returns in a thread of its own, which has ended then."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    gc.collect()
    return results[0]


def test_each_thread_has_its_own():
    values = PerThread(object)
    mine = values.get()
    assert values.get() is mine
    other = in_a_thread(lambda: (values.get(), values.get()))
    assert other[0] is other[1] is not mine
    assert values.all() == [mine, other[0]]


def test_the_next_thread_gets_that_of_one_that_has_ended():
    values = PerThread(object)
    mine = values.get()
    first = in_a_thread(values.get)
    assert in_a_thread(values.get) is first
    begun, done = threading.Event(), threading.Event()

    def stay():
        values.get()
        begun.set()
        done.wait(60)

    staying = threading.Thread(target=stay)
    staying.start()
    assert begun.wait(60)
    assert in_a_thread(values.get) not in (mine, first), "the first is in use"
    done.set()
    staying.join()
    assert len(values.all()) == 3


def test_values_that_were_forgotten_do_not_come_back():
    values, found, begun, done = PerThread(object), [], threading.Event(), threading.Event()

    def across():
        found.append(values.get())
        begun.set()
        done.wait(60)
        found.append(values.get())

    thread = threading.Thread(target=across)
    thread.start()
    assert begun.wait(60)
    values.forget()
    assert values.all() == []
    done.set()
    thread.join()
    gc.collect()
    assert found[1] is not found[0]
    assert in_a_thread(values.get) is found[1] and values.all() == [found[1]]
