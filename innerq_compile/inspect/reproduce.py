"""What ``graph_NNN/repro.py`` of a dump runs: one captured graph, on inputs like those of its first call.

The graph runs twice: eagerly, where its InnerQTensors do what they mean, and compiled by the backend ``innerq``. What
differs between the two is printed for each output.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import InnerQConfig
from ..kernels.formats import CacheFormat
from ..kernels.internals.dynamo_calls import fix_size

#: Floating-point inputs up to this many elements are written out; larger ones are random, of the same mean and spread.
SAVED_ELEMENTS = 4096


def describe_input(value: Any, example: Any, saved: list[torch.Tensor]) -> dict[str, Any]:
    """An argument of a graph as the keyword arguments that :func:`build` makes it of.

    ``example`` is what Dynamo traced with; ``saved`` collects the tensors whose values are kept.
    """
    from ..cache.buffer import InnerQBuffer
    from ..cache.tensor import InnerQTensor

    if isinstance(value, InnerQTensor):
        storage = value._storage
        start = storage.state[:, 0, 0].tolist()
        held = int((storage.state[..., 0] + storage.state[..., 1]).max())
        return {
            "kind": "buffer" if isinstance(value, InnerQBuffer) else "cache",
            "format": storage.format.spec,
            "shape": tuple(value.shape),
            "dtype": _name(value.dtype),
            "device": str(value.device),
            "start": start,
            "held": held if isinstance(value, InnerQBuffer) else value.shape[2],
            "mean": storage.mean is not None,
            "norm": storage.norm is not None,
        }
    if not isinstance(value, torch.Tensor):
        return {"kind": "number", "value": value}
    common = {
        "shape": tuple(value.shape),
        "dtype": _name(value.dtype),
        "device": str(value.device),
        "parameter": isinstance(value, nn.Parameter),
        "dynamic": [dim for dim, size in enumerate(example.shape) if isinstance(size, torch.SymInt)]
        if isinstance(example, torch.Tensor)
        else [],
    }
    data = value.detach()
    if not data.is_floating_point() or data.numel() <= SAVED_ELEMENTS or not _is_tame(data):
        saved.append(data.cpu().clone())
        return {"kind": "saved", "at": len(saved) - 1, **common}
    return {
        "kind": "random",
        **common,
        "stride": tuple(data.stride()),
        "mean": float(data.float().mean()),
        "std": float(data.float().std()),
    }


def _is_tame(data: torch.Tensor) -> bool:
    """Whether normal numbers can stand for these: not for a mask."""
    return bool(data.isfinite().all()) and float(data.abs().max()) < 1e30


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def build(description: dict[str, Any], saved: list[torch.Tensor], device: str | None = None) -> Any:
    """An argument of a graph from what :func:`describe_input` wrote."""
    kind = description["kind"]
    if kind == "number":
        return description["value"]
    shape, dtype = description["shape"], getattr(torch, description["dtype"])
    device = device or description["device"]
    if kind in ("cache", "buffer"):
        return _build_cache(description, device)
    if kind == "saved":
        data = saved[description["at"]].to(device)
    else:
        data = torch.randn(shape) * description["std"] + description["mean"]
        data = data.to(device, dtype)
        if 0 not in description["stride"]:
            data = torch.empty_strided(shape, description["stride"], dtype=dtype, device=device).copy_(data)
    if description["parameter"]:
        return nn.Parameter(data, requires_grad=False)
    for dim in range(data.dim()):
        if dim not in description["dynamic"]:
            fix_size(data, dim)
    return data


def _build_cache(description: dict[str, Any], device: str) -> torch.Tensor:
    from ..cache.buffer import empty_cache
    from ..cache.tensor import InnerQTensor

    fmt = CacheFormat.parse(description["format"])
    config = InnerQConfig(
        **{f"{fmt.role}_bits": fmt.bits, f"{fmt.role}_mode": fmt.mode},
        group_size=fmt.group_size,
        sink=fmt.sink,
        recent=fmt.recent,
        centre_keys=description["mean"],
        normalize_keys=description["norm"],
        scale_dtype=fmt.scale_dtype,
    )
    dtype, shape = getattr(torch, description["dtype"]), description["shape"]
    dense = torch.randn(*shape[:2], description["held"], shape[3]).to(device, dtype)
    if description["kind"] == "cache":
        start = torch.tensor(description["start"], dtype=torch.int32, device=device)
        return InnerQTensor.from_dense(dense, config, role=fmt.role, start=start)
    buffer = empty_cache(*shape, role=fmt.role, config=config, dtype=dtype, device=device)
    buffer[:, :, : dense.shape[2]] = dense
    return buffer


def reproduce(
    graph: Callable[..., Any], inputs: list[dict[str, Any]], options: dict[str, Any], folder: str | Path
) -> None:
    """The program of a ``repro.py``: reads its command line, runs the graph both ways, prints what differs."""
    parser = argparse.ArgumentParser(description="Run a captured graph eagerly and compiled, and compare the outputs.")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change an option of the backend, as --option preset=lossless or --option rewrite=False",
    )
    parser.add_argument("--device", help="run on another device than the graph was captured on")
    parser.add_argument("--limit", type=float, help="exit with 1 if an output differs by more than this, in rms")
    args = parser.parse_args()
    options = {**options, **dict(_parse_option(parser, text) for text in args.option)}
    saved = torch.load(Path(folder) / "inputs.pt", weights_only=True)

    def arguments() -> list[Any]:
        torch.manual_seed(0)
        return [build(description, saved, args.device) for description in inputs]

    from ..compiler.reports import compiled_graphs

    with torch.no_grad():
        expected = graph(*arguments())
        results = torch.compile(graph, backend="innerq", dynamic=True, options=options)(*arguments())
    for report in compiled_graphs():
        print(report)
    print(f"{'output':<8}{'shape':<24}{'kind':<14}difference, rms of the output")
    worst = 0.0
    for index, (result, reference) in enumerate(zip(results, expected, strict=True)):
        if not isinstance(result, torch.Tensor):
            print(f"{index:<8}{'':<24}{type(result).__name__:<14}{'equal' if result == reference else 'DIFFERENT'}")
            continue
        difference = _rms_difference(result, reference)
        worst = max(worst, difference)
        print(f"{index:<8}{tuple(result.shape)!s:<24}{type(result).__name__:<14}{difference:.2e}")
    if args.limit is not None and not worst <= args.limit:
        raise SystemExit(1)


def _parse_option(parser: argparse.ArgumentParser, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        parser.error(f"--option {text}: write it as NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word


def _rms_difference(result: torch.Tensor, reference: torch.Tensor) -> float:
    from ..cache.tensor import InnerQTensor

    a, b = (x.dequantize() if isinstance(x, InnerQTensor) else x for x in (result, reference))
    a, b = a.detach().double(), b.detach().double()
    scale = b.square().mean().sqrt()
    difference = (a - b).square().mean().sqrt()
    return float(difference / scale) if scale > 0 else float(difference)
