"""Dumps of threads that compile at the same time."""

from __future__ import annotations

import threading

import pytest
import torch

from innerq_compile import dump_graphs

pytestmark = pytest.mark.usefixtures("no_inductor")


#: By the name of a thread: what it compiles, and how that reads in its graph.
PROGRAMS = {"first": (lambda x: x * 3, "* 3"), "second": (lambda x: x * 5, "* 5")}


def test_each_thread_writes_to_its_own_folder(tmp_path):
    """Both blocks are open while both compile, and the first to open is the first to close."""
    both_open, first_is_done = threading.Barrier(2, timeout=60), threading.Event()
    failures = []

    def work(name: str) -> None:
        try:
            if name == "second":
                both_open.wait()
            with dump_graphs(tmp_path / name):
                if name == "first":
                    both_open.wait()
                else:
                    assert first_is_done.wait(60)
                torch.compile(PROGRAMS[name][0], backend="innerq")(torch.ones(2))
            first_is_done.set()
        except BaseException as error:
            failures.append(error)
            first_is_done.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in PROGRAMS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    for name, (_, code) in PROGRAMS.items():
        (folder,) = (tmp_path / name).glob("graph_*")
        assert code in (folder / "00_captured.py").read_text()


def test_a_thread_that_is_started_inside_is_dumped_as_well(tmp_path):
    with dump_graphs(tmp_path):
        thread = threading.Thread(target=lambda: torch.compile(lambda x: x - 7, backend="innerq")(torch.ones(2)))
        thread.start()
        thread.join(120)
    (folder,) = tmp_path.glob("graph_*")
    assert "- 7" in (folder / "00_captured.py").read_text()
