"""What one process of ``architectures.py`` measures: a few requests to one side of a model."""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from architecture_shapes import SHAPES
from requests_from_start import peak_gib, prepare, request
from torch._dynamo.utils import counters

REQUESTS = 3


def make_model(name: str, layers: int, positions: int, device: str, tiny: bool = False) -> Any:
    """A model with random weights in bfloat16, made on the device."""
    shape = SHAPES[name]
    config = shape.make_config(layers, positions, tiny)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = getattr(transformers, f"{shape.model}ForCausalLM")(config).eval()
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id = None  # random weights would end some answers
    return model


def weight_bytes(model: torch.nn.Module, batch: int) -> int:
    """Bytes of the weights that a step reads, see ``architectures.py``."""
    config = model.config
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    active = getattr(config, "num_experts_per_tok", None) or 0
    reached = 1 - (1 - active / experts) ** batch if experts else 1.0
    output = model.get_output_embeddings().weight
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)} - {
        id(output)
    }
    total = 0.0
    for name, parameter in model.named_parameters():
        if id(parameter) not in looked_up:
            total += parameter.nbytes * (reached if ".experts." in name else 1)
    return round(total)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Tensors of a cache: of its layers' attributes, in containers too."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache holds: keys and values, and states of layers without them."""
    different = {id(each): each for layer in cache.layers for each in tensors_in(vars(layer))}
    return sum(getattr(each, "nbytes_held", None) or each.nbytes for each in different.values())


def read_gb_s(device: str, tiny: bool = False) -> float:
    """GB a second that the device reads: the best of a copy, which counts twice, and a sum."""
    source = torch.ones((1 << 22) if tiny or device == "cpu" else (1 << 29), device=device)
    copy, best = torch.empty_like(source), 0.0
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for run, moved in ((lambda: copy.copy_(source), 2 * source.nbytes), (source.sum, source.nbytes)):
        run()
        for _ in range(3):
            wait()
            began = time.perf_counter()
            for _ in range(10):
                run()
            wait()
            best = max(best, 10 * moved / (time.perf_counter() - began) / 1e9)
    return best


def reported() -> dict[str, Any]:
    """What innerq-compile says of its graphs."""
    from innerq_compile import compiled_graphs

    reports = compiled_graphs()
    kept = [layer for report in reports for layer in report.layers if not layer.rewritten]
    return {
        "recorded": sum(report.recorded for report in reports),
        "calls": sum(report.calls for report in reports),
        "attentions": sum(report.attentions for report in reports),
        "rewritten": sum(report.rewritten for report in reports),
        "not_rewritten": sorted({layer.reason for layer in kept}),
        "notes": sorted({str(reason) for report in reports for reason in report.reasons}),
        "made_dense": sorted({str(reason) for report in reports for reason in report.made_dense}),
        "reports": [
            {
                "kind": str(report.kind),
                "attentions": report.attentions,
                "rewritten": report.rewritten,
                "calls": report.calls,
                "recorded": report.recorded,
                "cuda_graphs": str(report.cuda_graphs),
                "regions": report.regions,
                "reasons": [str(reason) for reason in report.reasons],
            }
            for report in reports
        ],
    }


def compiled(side: str) -> dict[str, Any]:
    """Counts of Dynamo and of the caches on disk, and for innerq its reports.

    With everything on disk nothing is traced, and the caches of Inductor and AOTAutograd miss nothing.
    """
    found: dict[str, Any] = {
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "traced_operations": counters["stats"]["calls_captured"],
        "caches": {
            name: count
            for kind in ("inductor", "aot_autograd")
            for name, count in sorted(counters[kind].items())
            if "cache" in name
        },
    }
    return found | (reported() if side == "innerq" else {})


def measure(args: argparse.Namespace, name: str, side: str) -> dict[str, Any]:
    """Seconds, milliseconds and bytes of the first request and of later ones."""
    torch.manual_seed(0)
    model = make_model(name, args.layers, args.tokens + args.new, args.device, args.tiny)
    (torch.ones(64, 64, device=args.device) @ torch.ones(64, 64, device=args.device)).sum().item()  # loads cuBLAS
    result: dict[str, Any] = {"like": SHAPES[name].like, "weight_bytes": weight_bytes(model, args.batch)}
    result["parameter_bytes"] = sum(parameter.nbytes for parameter in model.parameters())
    peak_gib(args.device)
    began = time.perf_counter()
    more = prepare(model, side, {})
    prepared = time.perf_counter() - began
    arrived, cache = request(model, args.batch, args.tokens, args.new, more)
    result |= {"first_token_s": prepared + arrived[0], "first_request_s": prepared + arrived[-1]}
    result["first_peak_gib"] = peak_gib(args.device)
    if not args.fill:
        for _ in range(REQUESTS - 1):
            del cache
            gc.collect()
            peak_gib(args.device)
            arrived, cache = request(model, args.batch, args.tokens, args.new, more)
        steps = [1e3 * (after - before) for before, after in itertools.pairwise(arrived)]
        last = steps[len(steps) // 2 :]
        step = statistics.median(last)
        result |= {
            "prompt_ms": 1e3 * arrived[0],
            "step_ms": step,
            "step_ms_least": min(last),
            "step_ms_most": max(last),
        }
        result |= {"tokens_per_s": 1e3 * args.batch / step, "peak_gib": peak_gib(args.device)}
    result["cache_bytes"] = cache_bytes(cache)
    quantized = [type(getattr(layer, "keys", None)).__name__ == "InnerQTensor" for layer in cache.layers]
    result |= {"cache": type(cache).__name__, "quantized": sum(quantized), "layers": len(quantized)}
    return result | compiled(side)
