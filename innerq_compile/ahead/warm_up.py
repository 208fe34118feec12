"""``innerq_compile.warm_up``: compile what requests need before the first one, and leave it on the disk."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ..cache.storage import CacheStorage
from ..compiler import traces
from ..compiler.deferred import compile_those_that_wait
from ..compiler.reports import compiled_graphs
from ..errors import InnerQError
from ..kernels.internals.dynamo_calls import counters
from ..runtime.report import RUN_OBSERVERS, GraphReport
from .folders import cache_folders, since
from .report import Request, WarmUp
from .unchanged import unchanged

#: The lengths of prompts, the numbers of sequences and the tokens of an answer, if a model is warmed up without others.
PROMPT_TOKENS, BATCH_SIZES, NEW_TOKENS = (160, 200), (1,), 8


def warm_up(
    target: Any,
    /,
    *args: Any,
    prompt_tokens: int | Iterable[int] | None = None,
    batch_sizes: int | Iterable[int] | None = None,
    new_tokens: int | None = None,
    **kwargs: Any,
) -> WarmUp:
    """Compile the prompt and the decode steps of a model before its first request.

    What is compiled stays in this process and in the caches on disk (``TORCHINDUCTOR_CACHE_DIR``,
    ``TRITON_CACHE_DIR``), where later processes find it. It depends on the kind of GPU, on the versions of PyTorch,
    Triton and this package, on the architecture and dtype of the model and on the options of :func:`innerq`, not on
    the values of weights.

    A model with a method ``generate`` answers random prompts. Any other model, and a function that runs a prompt and
    some decode steps, is called once, with the arguments given. Call it in the same mode as requests run in, such as
    ``torch.inference_mode()``; gradients are off in any case. Afterwards no cache, no recorded CUDA graph, no random
    number generator and no training flag tells that it ran.

    Args:
        target: A model compiled by :func:`innerq` or ``torch.compile(..., backend="innerq")``, or a function that runs
            one.
        *args: Positional arguments of ``target``, or of ``generate`` in place of random prompts.
        prompt_tokens: The lengths of the random prompts; 160 and 200 by default, because a second length shows PyTorch
            which sizes differ.
        batch_sizes: The numbers of sequences, each of which is combined with each length; 1 by default.
        new_tokens: Tokens to generate for each prompt; 8 by default, of which the first steps compile.
        **kwargs: Keyword arguments of ``target`` or ``generate``, such as ``cache_implementation="static"``.

    Returns:
        A :class:`WarmUp`: what was compiled, recorded and kept on disk, and what was not. ``print`` shows it.

    Raises:
        InnerQError: If nothing compiled with this backend ran, or an argument is not allowed.

    Example:
        >>> model = innerq(model, preset="small")
        >>> print(warm_up(model, prompt_tokens=(200, 4000), batch_sizes=(1, 8)))

        >>> warm_up(run_prompt_and_steps, tokens)
    """
    if not callable(target):
        raise InnerQError(f"{target!r} cannot be warmed up: it has to be a model or a function that runs one")
    generate = getattr(target, "generate", None) if isinstance(target, torch.nn.Module) else None
    if generate is None or args or "input_ids" in kwargs or "inputs" in kwargs:
        if prompt_tokens is not None or batch_sizes is not None or (generate is None and new_tokens is not None):
            raise InnerQError(
                "prompt_tokens, batch_sizes and new_tokens are for random prompts of a model with a method generate: "
                "leave them out, or the arguments of the call"
            )
        if generate is not None:
            kwargs = {**_lengths(_numbers("new_tokens", new_tokens, (NEW_TOKENS,))[0]), **kwargs}
        requests = iter([("the arguments given", lambda: (generate or target)(*args, **kwargs))])
    else:
        prompts = _numbers("prompt_tokens", prompt_tokens, PROMPT_TOKENS)
        batches = _numbers("batch_sizes", batch_sizes, BATCH_SIZES)
        kwargs = {**_lengths(_numbers("new_tokens", new_tokens, (NEW_TOKENS,))[0]), **kwargs}
        requests = _random_requests(target, prompts, batches, kwargs)
    return _run(target, requests)


def _run(target: Any, requests: Iterator[tuple[str, Callable[[], Any]]]) -> WarmUp:
    ran: dict[GraphReport, None] = {}

    def observe(report: GraphReport, storages: list[CacheStorage]) -> None:
        ran[report] = None

    folders, found, done = cache_folders(), dict(counters["aot_autograd"]), []
    restored = traces.restored()
    with unchanged(target), RUN_OBSERVERS.holding(observe):
        for name, run in requests:
            known, began = {*compiled_graphs()}, time.perf_counter()
            run()
            new = tuple(report.index for report in compiled_graphs() if report not in known)
            done.append(Request(name, time.perf_counter() - began, new))
        compile_those_that_wait()
    if not ran:
        raise InnerQError(
            "nothing that is compiled with backend='innerq' ran: compile the model first, as in warm_up(innerq(model))"
        )
    hits, misses, bypassed = (
        counters["aot_autograd"][f"autograd_cache_{name}"] - found.get(f"autograd_cache_{name}", 0)
        for name in ("hit", "miss", "bypass")
    )
    graphs = tuple(sorted(ran, key=lambda graph: graph.index))
    traced = sum(len(request.compiled) for request in done) - (traces.restored() - restored)
    return WarmUp(tuple(done), graphs, hits, misses, traced, bypassed, tuple(since(folders)))


def _random_requests(
    model: Any, prompts: tuple[int, ...], batches: tuple[int, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    # The first tokens of a vocabulary are text; special tokens, such as those that stand for images, come last.
    vocabulary = min(1000, model.config.get_text_config(decoder=True).vocab_size)
    for batch, tokens in itertools.product(batches, prompts):
        ids = torch.randint(0, vocabulary, (batch, tokens), device=model.device)
        yield (
            f"{batch} x {tokens:,} tokens",
            lambda ids=ids: model.generate(ids, **{"attention_mask": torch.ones_like(ids), **kwargs}),
        )


def _lengths(tokens: int) -> dict[str, Any]:
    """The arguments of ``generate`` for an answer of a fixed length."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


def _numbers(name: str, value: int | Iterable[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if value is None:
        return default
    numbers = tuple(value) if isinstance(value, Iterable) else (value,)
    if not numbers or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise InnerQError(f"{name}={value!r} is not allowed: it has to be whole numbers, 1 or more")
    return numbers
