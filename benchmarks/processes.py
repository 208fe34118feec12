"""Measurements in processes of their own, and what they ran on."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

#: A line of a traceback that names the exception.
_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Unsupported|Exit|Operation|Interrupt)\w*(: |$)")


#: Lines by which a process asks for something; it goes on when a line comes back.
READY, QUIET, LOUD = "ready", "quiet", "loud"
#: Seconds after which a device has done what stopped processes had asked it for.
SETTLE = 0.5
#: Seconds after which stopped processes go on in any case: one of them may hold what is waited for.
LONGEST_QUIET = 90.0


def _ask(line: str) -> None:
    print(line, flush=True)
    sys.stdin.readline()


def ready() -> None:
    """In a process that takes turns with others: say that only the measurement is left, and wait for the turn."""
    _ask(READY)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """In a process that takes turns with others: all others stand still until the end of this context."""
    _ask(QUIET)
    try:
        yield
    finally:
        _ask(LOUD)


def report(result: dict[str, Any]) -> None:
    """In a process that is measured: its result so far, which is what is known of it if it does not end by itself."""
    print(json.dumps(result), flush=True)


class Turns:
    """Processes that prepare at the same time, and take turns on each device in the order in which they are ready."""

    def __init__(self) -> None:
        self._devices: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)
        self._running: set[int] = set()
        self._still = threading.Lock()

    @contextlib.contextmanager
    def turn(self, device: int) -> Iterator[None]:
        """A turn on ``device``."""
        with self._devices[device]:
            yield

    @contextlib.contextmanager
    def started(self, start: Callable[[], subprocess.Popen[str]]) -> Iterator[subprocess.Popen[str]]:
        """A process that stands still while another one measures; none is started meanwhile."""
        with self._still:
            process = start()
            self._running.add(process.pid)
        try:
            yield process
        finally:
            self._running.discard(process.pid)

    @contextlib.contextmanager
    def quiet(self, pid: int) -> Iterator[None]:
        """All processes but ``pid`` are stopped, with those that they have started."""
        with self._still:
            stopped: list[psutil.Process] = []
            for other in self._running - {pid}:
                _suspend(other, stopped)
            late = threading.Timer(LONGEST_QUIET, _resume, [stopped])
            late.start()
            try:
                time.sleep(SETTLE if stopped else 0)
                yield
            finally:
                late.cancel()
                _resume(stopped)


def _suspend(pid: int, stopped: list[psutil.Process]) -> None:
    """Stop a process, and then its children: it starts no more of them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.suspend()
        stopped.append(process)
        for child in process.children():
            _suspend(child.pid, stopped)


def _resume(stopped: list[psutil.Process]) -> None:
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def measured(
    script: str,
    arguments: list[str],
    environment: dict[str, str] | None = None,
    seconds: float | None = None,
    turns: Turns | None = None,
    device: int = 0,
) -> dict[str, Any]:
    """The last dict that a process of ``script`` prints as a line of JSON; ``{"failed": reason, ...}`` if it fails.

    Args:
        script: The path of the script.
        arguments: Its arguments.
        environment: Variables for it, besides those of this process.
        seconds: How long it may take, waiting for its turn included. What it has reported until then is kept.
        turns: Shared with other processes. Without them its turn is at once, and it is always quiet.
        device: Where its turn is.
    """
    turns = turns or Turns()
    command = [sys.executable, os.path.abspath(script), *arguments]
    variables = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile("w+") as errors, contextlib.ExitStack() as until_it_ends:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = until_it_ends.enter_context(
            turns.started(lambda: subprocess.Popen(command, env=variables, text=True, **pipes))
        )
        until_it_ends.enter_context(process)
        late = threading.Event()
        timer = threading.Timer(
            threading.TIMEOUT_MAX if seconds is None else seconds, lambda: (late.set(), process.kill())
        )
        timer.start()
        until_it_ends.callback(timer.cancel)
        until_loud = until_it_ends.enter_context(contextlib.ExitStack())
        found: dict[str, Any] = {}
        assert process.stdin is not None and process.stdout is not None
        for line in process.stdout:
            asked = line.strip()
            if asked == READY:
                until_it_ends.enter_context(turns.turn(device))
            elif asked == QUIET:
                until_loud.enter_context(turns.quiet(process.pid))
            elif asked == LOUD:
                until_loud.close()
            else:
                if asked.startswith("{"):
                    found = json.loads(asked)
                continue
            with contextlib.suppress(BrokenPipeError):  # it has failed meanwhile
                process.stdin.write("go\n")
                process.stdin.flush()
        code = process.wait()
        errors.seek(0)
        stderr = errors.read()
    if late.is_set():
        return {**found, "failed": f"not done after {seconds:.0f} s", "stderr": stderr[-4000:]}
    if code:
        return {**found, "failed": reason_of(stderr, code), "stderr": stderr[-4000:]}
    return found


def reason_of(stderr: str, code: int) -> str:
    """The last line of ``stderr`` that names an exception, else its last line; Dynamo prints advice behind them."""
    lines = stderr.strip().splitlines() or [f"exit code {code}, no message"]
    return next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])


def machine(device: str) -> dict[str, Any]:
    """Device and versions."""
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"
    return {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "load": os.getloadavg(),
    }
