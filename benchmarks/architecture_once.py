"""What one process of ``architectures.py`` measures: a few requests of each size to one side of a model."""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import processes
import torch
import transformers
from architecture_shapes import SHAPES
from requests_from_start import peak_gib, prepare, request
from torch._dynamo.utils import counters
from transformers.generation import MaxLengthCriteria, StoppingCriteriaList

#: Tokens of a request that only compiles: all of its prompts, and its answer. Graphs do not depend on longer prompts.
PROMPTS, ANSWER = 1 << 14, 16
#: Bytes beside its weights that a process may hold on a GPU before its turn: the rest belongs to others. Two
#: static caches of the largest size have room. A recording that has run out of memory breaks those that come behind it.
ROOM = 32 << 30


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


def as_the_only_size(model: Any) -> None:
    """Let the next request be what it is in a process with requests of this size alone.

    ``generate`` makes a StaticCache as large as the largest that the model has had.
    """
    if hasattr(model, "_previous_max_cache_length"):
        del model._previous_max_cache_length


def first_request(args: argparse.Namespace, model: Any, batch: int, tokens: int, more: dict[str, Any]) -> float:
    """Seconds to the first token of a request that compiles what one of ``tokens`` tokens runs.

    Its prompt is shorter than ``tokens`` where many processes could not hold it at the same time. ``generate`` makes
    room for as many tokens, which is the size of a StaticCache, whose steps are compiled for this size alone.
    """
    as_the_only_size(model)
    prompt = min(tokens, PROMPTS // batch)
    stop = StoppingCriteriaList([MaxLengthCriteria(prompt + min(args.new, ANSWER))])
    arrived, _ = request(model, batch, prompt, tokens + args.new - prompt, {**more, "stopping_criteria": stop})
    return arrived[0]


def measure_size(
    args: argparse.Namespace, model: Any, batch: int, tokens: int, more: dict[str, Any], compiles: bool
) -> dict[str, Any]:
    """Milliseconds and bytes of a request of a size: the second one, of a side that compiles."""
    as_the_only_size(model)
    began = time.perf_counter()
    if compiles:
        request(model, batch, tokens, min(args.new, ANSWER), more)
    before_s = time.perf_counter() - began
    gc.collect()
    peak_gib(args.device)
    with processes.quiet():
        quiet_from = time.perf_counter()
        arrived, cache = request(model, batch, tokens, args.new, more)
        quiet_s = time.perf_counter() - quiet_from
    steps = [1e3 * (after - before) for before, after in itertools.pairwise(arrived)]
    last = steps[len(steps) // 2 :]
    step = statistics.median(last)
    quantized = [type(getattr(layer, "keys", None)).__name__ == "InnerQTensor" for layer in cache.layers]
    return {
        "weight_bytes": weight_bytes(model, batch),
        "cache_bytes": cache_bytes(cache),
        "cache": type(cache).__name__,
        "quantized": sum(quantized),
        "layers": len(quantized),
        "request_before_s": before_s,
        "disturbed": quiet_s > processes.LONGEST_QUIET - processes.SETTLE,
        "prompt_ms": 1e3 * arrived[0],
        "step_ms": step,
        "step_ms_least": min(last),
        "step_ms_most": max(last),
        "tokens_per_s": 1e3 * batch / step,
        "peak_gib": peak_gib(args.device),
    }


def limit_memory(device: str, room: int | None) -> None:
    """Let this process hold ``room`` bytes more on a GPU than it holds now, or all of them."""
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        held = torch.cuda.memory_allocated()
        torch.cuda.set_per_process_memory_fraction(1.0 if room is None else min(1.0, (held + room) / total))


def give_back_memory() -> None:
    """What is not used, to other processes on the device and to the next request."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(measurement: Any, *arguments: Any) -> dict[str, Any]:
    """What a measurement returns, or why it failed; what it held is given back then, so that the next can run."""
    try:
        return measurement(*arguments)
    except Exception as error:  # of any of the programs that are compared: the reason is the result
        text = f"{type(error).__name__}: {error}"
    give_back_memory()
    return {"failed": processes.reason_of(text, 1)[:300]}


def measure(args: argparse.Namespace, name: str, side: str) -> dict[str, Any]:
    """Seconds, milliseconds and bytes of the first requests and of later ones, for each size."""
    torch.manual_seed(0)
    sizes = list(itertools.product(args.batch, args.tokens))
    compiles = side != "eager"
    torch._dynamo.config.recompile_limit = 64  # some sides compile every size, and would run eagerly behind the limit
    if not (compiles or args.fill):
        processes.ready()  # before it takes memory that processes whose turn comes first may need
    model = make_model(name, args.layers, max(args.tokens) + args.new, args.device, args.tiny)
    (torch.ones(64, 64, device=args.device) @ torch.ones(64, 64, device=args.device)).sum().item()  # loads cuBLAS
    result: dict[str, Any] = {"like": SHAPES[name].like, "chunk": args.chunk or SHAPES[name].chunk}
    result["parameter_bytes"] = sum(parameter.nbytes for parameter in model.parameters())
    peak_gib(args.device)
    began = time.perf_counter()
    chunk = args.chunk or SHAPES[name].chunk
    more = prepare(model, side, {}) | ({"prefill_chunk_size": chunk} if chunk else {})
    prepared = time.perf_counter() - began
    first = sizes if compiles else sizes[:1]
    if compiles:
        limit_memory(args.device, ROOM)
    compiling = [attempt(lambda size=size: {"s": first_request(args, model, *size, more)}) for size in first]
    result |= {"first_requests": compiling, "first_peak_gib": peak_gib(args.device), "rows": []}
    if "s" in compiling[0]:
        result["first_token_s"] = prepared + compiling[0]["s"]
    if not args.fill:
        give_back_memory()
        result["compiled_s"] = time.perf_counter() - began
        if compiles:
            processes.ready()
        limit_memory(args.device, None)
        result["turn_s"] = time.perf_counter() - began
        for batch, tokens in sizes:
            found = attempt(measure_size, args, model, batch, tokens, more, compiles)
            result["rows"].append({"batch": batch, "tokens": tokens, **found})
            processes.report(result | compiled(side))
            give_back_memory()
    return result | compiled(side)
