"""Measurements in processes of their own, and what they ran on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

#: A line of a traceback that names the exception.
_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Unsupported|Exit|Operation|Interrupt)\w*(: |$)")


def measured(
    script: str, arguments: list[str], environment: dict[str, str] | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """The dict that a process of ``script`` prints as JSON in its last line; ``{"failed": reason, ...}`` if it fails.

    Args:
        script: The path of the script.
        arguments: Its arguments.
        environment: Variables for it, besides those of this process.
        seconds: How long it may take.
    """
    command = [sys.executable, os.path.abspath(script), *arguments]
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds:.0f} s", "stderr": ""}
    if done.returncode:
        return {"failed": reason_of(done.stderr, done.returncode), "stderr": done.stderr[-4000:]}
    return json.loads(done.stdout.splitlines()[-1])


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
