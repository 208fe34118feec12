"""Compare a model's predictions on a text with and without quantization: KL divergence, top-1, perplexity."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from ..presets import PRESETS
from .arguments import add_model_arguments, device_of, dtype_of, positive
from .decoding import Decoder
from .models import load_model, load_tokenizer
from .output import CommandError, Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model_arguments(parser)
    parser.add_argument("--text", type=Path, required=True, help="a file with text like that of your application")
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=["base"], help="default: base")
    parser.add_argument("--context", type=positive, default=512, help="tokens before the first prediction, default 512")
    parser.add_argument("--tokens", type=positive, default=128, help="number of predictions, default 128")


def run(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """For each preset, how the predictions of its decode steps differ from those of the unquantized model."""
    device = device_of(args)
    try:
        text = args.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--text {args.text}: {error}", usage=True) from None
    ids = load_tokenizer(args.model)(text, return_tensors="pt")["input_ids"].to(device)
    wanted = args.context + args.tokens + 1
    if ids.shape[1] < wanted:
        raise CommandError(
            f"the text has {ids.shape[1]} tokens, but --context {args.context} --tokens {args.tokens} need {wanted}: "
            "give a longer text, or smaller numbers",
            usage=True,
        )
    ids = ids[:, :wanted]
    model = load_model(args.model, device, dtype_of(args, device), output)
    with output.progress("not quantized", args.tokens) as advance:
        exact = _predictions(Decoder(model), ids, args.context, advance)
    result: dict[str, Any] = {
        "model": args.model,
        "context": args.context,
        "tokens": args.tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
        "perplexity": _perplexity(exact, ids, args.context),
        "presets": {},
    }
    for preset in args.preset:
        result["presets"][preset] = _measure(model, preset, ids, exact, args.context, output)
    return result


def _measure(model: Any, preset: str, ids: torch.Tensor, exact: torch.Tensor, context: int, output: Output) -> Any:
    from ..api import innerq
    from ..cache.tensor import InnerQTensor
    from ..kernels.internals.dynamo_calls import forget_compiled, set_compiled_call

    forget_compiled()
    innerq(model, preset=preset)
    decoder = Decoder(model)
    try:
        with output.progress(f"preset {preset}", exact.shape[0]) as advance:
            found = _predictions(decoder, ids, context, advance)
    finally:
        set_compiled_call(model, None)
    quantized = sum(isinstance(layer.keys, InnerQTensor) for layer in decoder.cache.layers)
    if not quantized:
        raise CommandError("no cache of this model was quantized: run python -m innerq_compile explain to see why")
    p, q = exact.log_softmax(-1), found.log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1)
    return {
        "quantized_layers": quantized,
        "layers": len(decoder.cache.layers),
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
        "top1_agreement": float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        "perplexity": _perplexity(found, ids, context),
        "cache_bytes": decoder.cache_bytes,
    }


def _predictions(decoder: Decoder, ids: torch.Tensor, context: int, advance: Any) -> torch.Tensor:
    """The logits ``[tokens, vocab]``, float32, of decode steps after ``context`` tokens, with the text as input."""
    decoder(ids[:, :context])
    logits = []
    for index in range(context, ids.shape[1] - 1):
        logits.append(decoder(ids[:, index : index + 1])[0].float().cpu())
        advance()
    return torch.stack(logits)


def _perplexity(logits: torch.Tensor, ids: torch.Tensor, context: int) -> float:
    targets = ids[0, context + 1 :].cpu()
    return math.exp(float(torch.nn.functional.cross_entropy(logits, targets)))


def show(result: dict[str, Any], output: Output) -> None:
    """Print a table with a row for each preset."""
    rows = [["not quantized", "", "", "", f"{result['perplexity']:.3f}", ""]]
    for name, found in result["presets"].items():
        rows.append(
            [
                name,
                f"{found['kl_mean']:.2e}",
                f"{found['kl_max']:.2e}",
                f"{found['top1_agreement']:.1%}",
                f"{found['perplexity']:.3f}",
                f"{found['cache_bytes']:,}",
            ]
        )
    title = f"{result['tokens']} decode steps after {result['context']} tokens, {result['dtype']}"
    output.table(title, ["", "KL, mean", "KL, largest", "same top token", "perplexity", "cache, bytes"], rows)
