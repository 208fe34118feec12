"""Print versions, devices, the kernels in use, and private torch API that this version of torch lacks."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import platform
from typing import Any

import torch

import innerq_compile

from ..kernels import cpu, dispatch, lowering
from ..kernels.formats import DTYPES
from ..kernels.internals import table
from ..kernels.triton import support
from ..kernels.versions import SUPPORTED_TORCH, is_supported
from .output import Output

PACKAGES = ("numpy", "transformers", "triton", "accelerate", "gguf", "rich", "matplotlib")
VARIABLES = (
    "INNERQ_DUMP",
    "INNERQ_PROGRESS",
    "INNERQ_KERNELS",
    "INNERQ_CPU_KERNELS",
    "INNERQ_LOWERING",
    "INNERQ_TRACES",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
    "TORCH_LOGS",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments of its own."""


def run(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """The environment as a dict."""
    return {
        "innerq_compile": innerq_compile.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_supported": is_supported(torch.__version__),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "kernels": "C++" if cpu.available() else "reference: no C++ compiler, or INNERQ_CPU_KERNELS=0",
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "gpu_kernels": _gpu_kernels(),
        "lowerings": dataclasses.asdict(lowering.register()),
        "missing": {name: entry.without for name, entry in table.missing().items()},
        "reference_only": dispatch.reference_only(),
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in DTYPES],
        "traces": _traces(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


def _traces() -> dict[str, Any]:
    from ..compiler import traces  # imports Dynamo

    return {"folder": traces.folder(), "off": traces.why_off()}


def _gpu_kernels() -> str:
    if not support.installed():
        return "reference: Triton is not installed"
    if not torch.cuda.is_available():
        return "none: no CUDA device"
    return "Triton"


def show(result: dict[str, Any], output: Output) -> None:
    """Print the environment as a table."""
    remark = "" if result["torch_supported"] else f" (untested; tested are {', '.join(SUPPORTED_TORCH)})"
    lowerings = result["lowerings"]
    traces = result["traces"]
    rows = [
        ("innerq-compile", result["innerq_compile"]),
        ("Python", f"{result['python']} on {result['platform']}"),
        ("torch", result["torch"] + remark),
        *((name, version or "not installed") for name, version in result["packages"].items()),
        ("CPU", f"{result['cpu']['capability']}, {result['cpu']['threads']} threads"),
        ("CPU kernels", result["cpu"]["kernels"]),
        *(
            (f"GPU {index}", f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, capability {gpu['capability']}")
            for index, gpu in enumerate(result["gpus"])
        ),
        ("GPU kernels", result["gpu_kernels"]),
        ("lowerings", "registered" if lowerings["done"] else f"none: {lowerings['reason']}"),
        ("traces", f"off: {traces['off']}" if traces["off"] else f"kept in {traces['folder']}"),
        ("cache dtypes", ", ".join(result["dtypes"])),
        *((name, value) for name, value in result["variables"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        output.line(f"{name:<{width}}  {value}")
    for name, without in result["missing"].items():
        output.line(f"{name} is missing: {without}")
