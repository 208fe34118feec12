"""Used by ``graph_NNN/repro.py`` of a dump: runs one captured graph on inputs like those of its first call.

The graph runs eagerly, with the operations of InnerQTensor, and compiled by the backend ``innerq``. The difference of
each output is printed.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cache.buffer import InnerQBuffer
from ..cache.empty_cache import empty_cache
from ..cache.tensor import InnerQTensor
from ..compiler.reports import compiled_graphs
from ..config import InnerQConfig
from ..errors import InnerQError
from ..kernels import layout
from ..kernels.formats import CacheFormat
from ..kernels.internals.dynamo_calls import fix_size

#: Floating-point inputs of up to this many elements are saved. Larger ones are replaced by random numbers of the same
#: mean and standard deviation.
SAVED_ELEMENTS = 4096


def describe_input(value: Any, example: Any, saved: list[torch.Tensor]) -> dict[str, Any]:
    """A description of an argument of a graph, from which :func:`build` makes one like it.

    Args:
        value: the argument.
        example: the example value of its placeholder.
        saved: a list to which tensors are appended whose values are kept.
    """
    if isinstance(value, InnerQTensor):
        return _describe_cache(value)
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


def _describe_cache(cache: InnerQTensor) -> dict[str, Any]:
    storage = cache._storage
    starts, lengths = storage.tensors.state[..., layout.START], storage.tensors.state[..., layout.LENGTH]
    is_buffer = isinstance(cache, InnerQBuffer)
    return {
        "kind": "buffer" if is_buffer else "cache",
        "format": storage.format.spec,
        "shape": tuple(cache.shape),
        "tokens_dim": cache.tokens_dim,
        "dtype": _name(cache.dtype),
        "device": str(cache.device),
        "start": starts[:, 0].tolist(),
        "held": int((starts + lengths).max()) if is_buffer else cache.shape[cache.tokens_dim],
        "mean": storage.tensors.mean is not None,
        "norm": storage.tensors.norm is not None,
    }


def _is_tame(data: torch.Tensor) -> bool:
    """Whether random normal numbers can replace the data; not so for a mask with -inf or very large numbers."""
    return bool(data.isfinite().all()) and float(data.abs().max()) < 1e30


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def build(description: dict[str, Any], saved: list[torch.Tensor], device: str | None = None) -> Any:
    """An argument of a graph, from its description.

    Args:
        description: the result of :func:`describe_input`.
        saved: the tensors that :func:`describe_input` saved.
        device: the device of the argument; None for the device that it was on.

    Raises:
        InnerQError: if this version of the package makes a cache of another format for the same options.
    """
    kind = description["kind"]
    if kind == "number":
        return description["value"]
    device = device or str(description["device"])
    if kind in ("cache", "buffer"):
        return _build_cache(description, device)
    if kind == "saved":
        data = saved[description["at"]].to(device)
    else:
        shape, dtype = description["shape"], getattr(torch, description["dtype"])
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


def _build_cache(description: dict[str, Any], device: str) -> InnerQTensor:
    """A cache of random tokens in exactly the format described, because the format selects the compiled program."""
    fmt = CacheFormat.parse(description["format"])
    options: dict[str, Any] = {f"{fmt.role}_bits": fmt.bits, f"{fmt.role}_mode": fmt.mode}
    if fmt.norm == "paper":
        options["key_norm"] = "paper"
    config = InnerQConfig(
        **options,
        group_size=fmt.group_size,
        sink=fmt.sink,
        recent=fmt.recent,
        centre_keys=description["mean"],
        normalize_keys=description["norm"],
        scale_dtype=fmt.scale_dtype,
    )
    dtype, shape, tokens_dim = getattr(torch, description["dtype"]), description["shape"], description["tokens_dim"]
    if description["kind"] == "buffer":
        made: InnerQTensor = empty_cache(*shape, role=fmt.role, config=config, dtype=dtype, device=device)
        held = description["held"]
        made[:, :, :held] = torch.randn(*shape[:2], held, shape[3]).to(device, dtype)
    else:
        start = torch.tensor(description["start"], dtype=torch.int32, device=device)
        dense = torch.randn(shape).to(device, dtype)
        norm = fmt.norm if fmt.is_key and fmt.norm != "paper" else None
        made = InnerQTensor.from_dense(dense, config, role=fmt.role, start=start, tokens_dim=tokens_dim, norm=norm)
    if made.format != fmt:
        raise InnerQError(
            f"a cache of format {fmt.spec} cannot be reproduced: this version of innerq-compile makes "
            f"{made.format.spec} of the same options; run the reproducer with the version that wrote the dump"
        )
    return made


def reproduce(
    graph: Callable[..., Any], inputs: list[dict[str, Any]], options: dict[str, Any], folder: str | Path
) -> None:
    """Main function of a ``repro.py``: parses its command line, runs the graph eagerly and compiled, compares both.

    Args:
        graph: the captured graph.
        inputs: descriptions of its arguments, see :func:`build`.
        options: options of the backend; ``--option`` overrides them.
        folder: the folder that holds ``inputs.pt``.
    """
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
        return name, value  # a string without quotes


def _rms_difference(result: torch.Tensor, reference: torch.Tensor) -> float:
    a, b = (x.dequantize() if isinstance(x, InnerQTensor) else x for x in (result, reference))
    a, b = a.detach().double(), b.detach().double()
    scale = b.square().mean().sqrt()
    difference = (a - b).square().mean().sqrt()
    return float(difference / scale) if scale > 0 else float(difference)
