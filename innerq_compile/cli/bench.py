"""Measure the speed of decode attention and of whole decode steps, with a quantized and with a dense cache."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..config import InnerQConfig
from ..kernels import dispatch, layout
from ..kernels import ops as _ops  # noqa: F401  (defines the innerq:: operators)
from ..kernels.attention_call import AttentionCall
from ..kernels.cache import Cache, CacheTensors
from ..kernels.channels import with_zeros
from ..kernels.formats import CacheFormat, blocks_for
from ..kernels.reference import default_profile
from ..kernels.schemas import arguments_of
from ..runtime.report import AttentionKernel
from .arguments import (
    add_backend_arguments,
    add_model_arguments,
    backend_options,
    config_of,
    device_of,
    dtype_of,
    positive,
)
from .decoding import Decoder, median_ms
from .models import load_model
from .output import CommandError, Output, need

#: Query heads, KV heads and head_dim if no model is given: those of Llama 3.1 8B on a GPU, of SmolLM2-135M on a CPU.
HEADS = {"cuda": (32, 8, 128), "cpu": (9, 3, 64)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model_arguments(parser, optional=True)
    add_backend_arguments(parser)
    parser.add_argument("--context", type=positive, nargs="+", default=[1024, 4096], help="tokens in the cache")
    parser.add_argument("--batch", type=positive, default=1, help="number of sequences, default 1")
    parser.add_argument("--steps", type=positive, default=20, help="timed calls for each figure, default 20")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a chart, as bench.png (needs matplotlib)")
    parser.add_argument("--attention-only", action="store_true", help="skip whole decode steps, which have to compile")


def run(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Milliseconds and bytes of one layer's attention and of whole decode steps, for each context length."""
    options = backend_options(args)
    if args.plot is not None:
        need("matplotlib")
    device = device_of(args)
    dtype = dtype_of(args, device)
    model = None
    if args.model is not None:
        model = load_model(args.model, device, dtype, output)
        config = model.config.get_text_config()
        heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    else:
        heads, kv_heads, head_dim = HEADS.get(device.type, HEADS["cpu"])
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "options": options,
        "batch": args.batch,
        "shape": {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim},
        "attention": [],
        "steps": [],
    }
    with output.progress("decode attention", len(args.context)) as advance:
        for context in args.context:
            sizes = (args.batch, heads, kv_heads, head_dim, context)
            result["attention"].append(attention(config_of(options), sizes, dtype, device, args.steps))
            advance()
    if not args.attention_only:
        if model is None:
            model = _random_model(heads, kv_heads, head_dim, device, dtype)
            result["model"] = "random weights, 4 layers"
        else:
            result["model"] = args.model
        with output.progress("decode steps", 2 * len(args.context)) as advance:
            for context in args.context:
                result["steps"].append(steps(model, options, args.batch, context, args.steps, advance))
    if args.plot is not None:
        plot(result, args.plot)
        result["plot"] = str(args.plot)
    return result


def _cache_of(x: torch.Tensor, fmt: CacheFormat, capacity: int) -> Cache:
    """A cache of keys or values ``[B, H, S, D]`` with room for ``capacity`` blocks."""
    x = with_zeros(x, fmt)
    start = torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
    profile = default_profile(fmt, x)
    encoded = torch.ops.innerq.prefill(x, start, None, None, capacity, fmt.spec, profile)
    return dataclasses.replace(CacheTensors.of_encoded(fmt, encoded), query_profile=profile)


@torch.no_grad()
def attention(
    config: InnerQConfig, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device, steps: int
) -> dict[str, Any]:
    """Time one layer's decode attention: append a token and attend to all tokens.

    Three variants are timed: the quantized cache, ``torch.cat`` with SDPA, and SDPA alone.
    """
    batch, heads, kv_heads, head_dim, context = sizes
    formats = [config.format_for(role, head_dim, dtype) for role in ("key", "value")]
    keys, values = (torch.randn(batch, kv_heads, context, head_dim, device=device).to(dtype) for _ in range(2))
    query = torch.randn(batch, heads, 1, head_dim, device=device).to(dtype)
    new_key, new_value = (torch.randn(batch, kv_heads, 1, head_dim, device=device).to(dtype) for _ in range(2))
    capacity = blocks_for(formats[0], context + steps + 64) + 1
    key_cache, value_cache = (_cache_of(x, fmt, capacity) for x, fmt in zip((keys, values), formats, strict=True))
    held = (with_zeros(x, fmt) for x, fmt in zip((new_key, new_value), formats, strict=True))
    new = arguments_of("append_", key_cache, value_cache, *held)
    call = AttentionCall(with_zeros(query, formats[0]), key_cache, value_cache, None, None, None, head_dim**-0.5)
    arguments = call.arguments()

    def quantized() -> torch.Tensor:
        torch.ops.innerq.append_(*new)
        return torch.ops.innerq.decode_attention(*arguments)

    def grown() -> torch.Tensor:
        k, v = torch.cat((keys, new_key), 2), torch.cat((values, new_value), 2)
        return F.scaled_dot_product_attention(query, k, v, enable_gqa=heads != kv_heads)

    def static() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, keys, values, enable_gqa=heads != kv_heads)

    held_bytes = sum(
        layout.cache_bytes(fmt, batch, kv_heads, head_dim + fmt.zeros, dtype, blocks_for(fmt, context))
        for fmt in formats
    )
    calls: dict[str, Callable[[], Any]] = {"innerq_ms": quantized, "cat_sdpa_ms": grown, "sdpa_ms": static}
    return {
        "context": context,
        "kernel": str(AttentionKernel.of(dispatch.decode_kernel(call))),
        **{name: median_ms(call, device, steps) for name, call in calls.items()},
        "innerq_bytes": held_bytes,
        "dense_bytes": 2 * batch * kv_heads * context * head_dim * dtype.itemsize,
    }


def steps(
    model: Any, options: dict[str, Any], batch: int, context: int, count: int, advance: Callable[..., None]
) -> dict[str, Any]:
    """Time whole decode steps after a random prompt: compiled with Inductor and a DynamicCache, and with innerq."""
    from ..api import innerq
    from ..kernels.internals.dynamo_calls import forget_compiled

    result: dict[str, Any] = {"context": context}
    vocabulary = model.config.get_text_config().vocab_size
    for side in ("inductor", "innerq"):
        forget_compiled()
        runner = copy.deepcopy(model)
        if side == "innerq":
            innerq(runner, **options)
        else:
            runner.compile(mode=options.get("mode"))
        torch.manual_seed(0)
        decoder = Decoder(runner)
        decoder(torch.randint(0, vocabulary, (batch, context), device=model.device))
        token = torch.randint(0, vocabulary, (batch, 1), device=model.device)
        result[f"{side}_ms"] = median_ms(lambda d=decoder, t=token: d(t), model.device, count, warmup=6)
        result[f"{side}_bytes"] = decoder.cache_bytes
        advance()
    return result


def _random_model(heads: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Any:
    transformers = need("transformers")
    config = transformers.LlamaConfig(
        hidden_size=heads * head_dim,
        intermediate_size=4 * heads * head_dim,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=1024,
        max_position_embeddings=1 << 20,
    )
    return transformers.LlamaForCausalLM(config).to(device, dtype).eval()


def plot(result: dict[str, Any], path: Path) -> None:
    """Write a chart of milliseconds over context length to ``path``."""
    need("matplotlib").use("Agg")
    figures = [("attention of a layer", result["attention"], {"innerq": "innerq_ms", "cat + SDPA": "cat_sdpa_ms"})]
    if result["steps"]:
        figures.append(("decode step", result["steps"], {"innerq": "innerq_ms", "Inductor": "inductor_ms"}))
    plt = need("matplotlib.pyplot")
    figure, axes = plt.subplots(1, len(figures), figsize=(5 * len(figures), 3.6), squeeze=False, layout="constrained")
    for axis, (title, rows, lines) in zip(axes[0], figures, strict=True):
        for label, name in lines.items():
            axis.plot([row["context"] for row in rows], [row[name] for row in rows], marker="o", label=label)
        axis.set(title=f"{title}, {result['dtype']}, {result['device']}", xlabel="tokens in the cache", ylabel="ms")
        axis.set_ylim(bottom=0)
        axis.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise CommandError(f"--plot {path}: {error}", usage=True) from None
    finally:
        plt.close(figure)


def show(result: dict[str, Any], output: Output) -> None:
    """Print the result as two tables."""
    shape = result["shape"]
    rows = [
        [
            f"{row['context']:,}",
            f"{row['innerq_ms']:.3f}",
            f"{row['cat_sdpa_ms']:.3f}",
            f"{row['sdpa_ms']:.3f}",
            f"{row['innerq_bytes'] / row['dense_bytes']:.3f}",
            row["kernel"],
        ]
        for row in result["attention"]
    ]
    title = (
        f"append + attention of a layer, ms: {result['batch']} x {shape['heads']} heads on {shape['kv_heads']}, "
        f"head_dim {shape['head_dim']}, {result['dtype']}, {result['device']}"
    )
    output.table(title, ["tokens", "innerq", "cat + SDPA", "SDPA alone", "size", "kernel"], rows)
    if result["steps"]:
        rows = [
            [
                f"{row['context']:,}",
                f"{row['innerq_ms']:.2f}",
                f"{row['inductor_ms']:.2f}",
                f"{row['innerq_bytes']:,}",
                f"{row['inductor_bytes']:,}",
            ]
            for row in result["steps"]
        ]
        title = f"decode step, ms: {result['model']}"
        output.table(title, ["tokens", "innerq", "Inductor", "bytes, innerq", "bytes, Inductor"], rows)
    if "plot" in result:
        output.line(f"chart: {result['plot']}")
