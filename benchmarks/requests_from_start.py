"""What one process of ``first_token.py`` measures: requests to a model from the first one on.

The weights are on the device before the clock starts. What is compiled, or taken from caches on disk, is within it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import resource
import statistics
import time
from typing import Any

import torch
from llama import Clock, model_8b
from torch._dynamo.utils import counters
from transformers import LlamaForCausalLM

GIB = 2**30
#: The first of so many steps in a row that take at most so many times the median of the last half is a fast one.
IN_A_ROW, FAST = 3, 1.2


def make_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A Llama with random weights, of the size that the arguments of ``first_token.py`` give, on the device."""
    heads = args.hidden // args.head_dim
    model = model_8b(
        args.layers,
        args.device,
        getattr(torch, args.dtype),
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 7 // 2,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        head_dim=args.head_dim,
        vocab_size=args.vocabulary,
    )
    model.generation_config.eos_token_id = None  # random weights would end some answers
    return model


def prepare(model: LlamaForCausalLM, side: str, options: dict[str, Any]) -> dict[str, Any]:
    """Do what a user of a side does before the first request. Returns what he passes to ``generate``."""
    if side == "innerq":
        from innerq_compile import innerq

        innerq(model, **options)
    elif side == "compile":
        model.compile()
    elif side == "static":  # on a GPU generate compiles the steps itself
        return {"cache_implementation": "static"}
    return {}


def request(model: LlamaForCausalLM, batch: int, prompt: int, tokens: int, more: dict[str, Any]) -> tuple[list, Any]:
    """The times at which the tokens of an answer arrived, in seconds from the request on, and the cache."""
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), device=model.device)
    clock = Clock()
    began = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        streamer=clock,
        return_dict_in_generate=True,
        **more,
    )
    return [at - began for at in clock.at[1:]], out.past_key_values  # the first time is that of the prompt itself


def fast_from(arrived: list[float]) -> float | None:
    """When steps became fast: seconds from the request to the token before the first fast step; None if never.

    See :data:`IN_A_ROW`.
    """
    steps = [after - before for before, after in itertools.pairwise(arrived)]
    limit = FAST * statistics.median(steps[len(steps) // 2 :])
    for index in range(len(steps) - IN_A_ROW + 1):
        if all(step <= limit for step in steps[index : index + IN_A_ROW]):
            return arrived[index]
    return None


def peak_gib(device: str) -> float:
    """The most memory that was held since the last call: of the GPU, or else of this process from its start on."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has started and waited for, such as C++ compilers."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(args: argparse.Namespace, side: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds, milliseconds and GiB of the first request, of one with another length, and of later ones."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = make_model(args)
    (torch.ones(64, 64, device=args.device) @ torch.ones(64, 64, device=args.device)).sum().item()  # loads cuBLAS
    peak_gib(args.device)
    began, used = time.perf_counter(), cpu_seconds()
    more = prepare(model, side, options)
    prepared = time.perf_counter() - began
    arrived, cache = request(model, args.batch, args.prompt, args.tokens, more)
    if side == "innerq" and type(cache.layers[0].keys).__name__ != "InnerQTensor":
        raise SystemExit(f"the caches of the innerq model are of {type(cache.layers[0].keys)}: nothing was measured")
    del cache
    fast = fast_from(arrived)
    result: dict[str, Any] = {
        "first_token_s": prepared + arrived[0],
        "fast_steps_s": None if fast is None else prepared + fast,
        "first_cpu_s": cpu_seconds() - used,
        "first_peak_gib": peak_gib(args.device),
    }
    result["second_prompt_s"] = request(model, args.batch, args.second, 4, more)[0][0]
    gc.collect()
    peak_gib(args.device)
    prompts, steps = [], []
    for _ in range(args.repeats):
        arrived, _ = request(model, args.batch, args.prompt, args.tokens, more)
        prompts.append(1e3 * arrived[0])
        steps += [1e3 * (after - before) for before, after in itertools.pairwise(arrived)]
    found = counters["aot_autograd"]
    return result | {
        "prompt_ms": statistics.median(prompts),
        "step_ms": statistics.median(steps),
        "tokens_per_s": 1e3 / statistics.fmean(steps),
        "peak_gib": peak_gib(args.device),
        "graphs": counters["stats"]["unique_graphs"],
        "graphs_from_cache": found["autograd_cache_hit"],
        "graphs_compiled": found["autograd_cache_miss"] + found["autograd_cache_bypass"],
    }
