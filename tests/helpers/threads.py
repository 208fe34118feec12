"""Functions that run in several threads at the same time."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


@contextlib.contextmanager
def frequent_switches() -> Iterator[None]:
    """Inside, threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(*functions: Callable[[], Any], often: bool = True) -> list[Any]:
    """What the functions return, each called in a thread of its own, at about the same time.

    Args:
        functions: the functions.
        often: take turns as often as possible. Where they compile, that takes several times as long.
    """
    together = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        together.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool, frequent_switches() if often else contextlib.nullcontext():
        return list(pool.map(run, functions))


def generated(model: Any, inputs: dict[str, Any], new: int) -> Any:
    """What ``generate`` returns for greedy tokens. `run` would seed the generator, of which all threads have one."""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
    return model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, **options)


def streamed(model: Any, tokenizer: Any, inputs: dict[str, Any], new: int, timeout: float) -> str:
    """The text that ``generate`` writes to a streamer in a thread of its own, read in this one."""
    from transformers import TextIteratorStreamer  # which most tests with threads do without

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=timeout)
    options = {**inputs, "max_new_tokens": new, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    return text
