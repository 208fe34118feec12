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
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

#: A line of a traceback that names the exception.
_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Unsupported|Exit|Operation|Interrupt)\w*(: |$)")


#: The line that a process prints when it has compiled what it will measure, see :func:`ready`.
READY = "ready"


def ready() -> None:
    """In a process that takes turns with others: say that only the measurement is left, and wait for the turn."""
    print(READY, flush=True)
    sys.stdin.readline()


class Turns:
    """The order of ``processes`` processes that prepare at the same time: the first turn begins when all are ready.

    Processes on one device take their turns one after the other.
    """

    def __init__(self, processes: int) -> None:
        self._ready = threading.Barrier(processes)
        self._devices: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)

    def abort(self) -> None:
        """End the waiting of all, when one of them cannot come."""
        self._ready.abort()

    @contextlib.contextmanager
    def turn(self, device: int) -> Iterator[None]:
        """A turn on ``device``. A process that has failed waits for the others too, since they count on it."""
        self._ready.wait()
        with self._devices[device]:
            yield


def measured(
    script: str,
    arguments: list[str],
    environment: dict[str, str] | None = None,
    seconds: float | None = None,
    turn: AbstractContextManager[None] | None = None,
) -> dict[str, Any]:
    """The dict that a process of ``script`` prints as JSON in its last line; ``{"failed": reason, ...}`` if it fails.

    Args:
        script: The path of the script.
        arguments: Its arguments.
        environment: Variables for it, besides those of this process.
        seconds: How long it may take, waiting for its turn included.
        turn: When a process that calls :func:`ready` may go on. It does not wait without one.
    """
    command = [sys.executable, os.path.abspath(script), *arguments]
    variables = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, env=variables, text=True, **pipes) as process:
            late = threading.Event()
            timer = threading.Timer(seconds or threading.TIMEOUT_MAX, lambda: (late.set(), process.kill()))
            timer.start()
            assert process.stdout is not None
            if turn is not None:
                while (line := process.stdout.readline()) and line.strip() != READY:
                    pass
            with turn or contextlib.nullcontext():
                out, _ = process.communicate("go\n")
            timer.cancel()
        errors.seek(0)
        stderr = errors.read()
    if late.is_set():
        return {"failed": f"not done after {seconds:.0f} s", "stderr": stderr[-4000:]}
    if process.returncode:
        return {"failed": reason_of(stderr, process.returncode), "stderr": stderr[-4000:]}
    return json.loads(out.splitlines()[-1])


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
