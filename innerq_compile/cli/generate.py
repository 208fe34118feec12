"""Generate text with a quantized cache, and compare size and speed with a dense cache."""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .arguments import add_backend_arguments, add_model_arguments, backend_options, device_of, dtype_of, positive
from .decoding import cache_bytes, synchronize
from .models import load_model, load_tokenizer
from .output import CommandError, Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model_arguments(parser)
    add_backend_arguments(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the text to continue; without it and --file, standard input is read")
    source.add_argument("--file", type=Path, help="a file with the text to continue")
    parser.add_argument("--chat", action="store_true", help="the text is a message: apply the model's chat template")
    parser.add_argument("--tokens", type=positive, default=128, help="tokens to generate, default 128")
    parser.add_argument(
        "--compare",
        choices=["inductor", "eager", "none"],
        default="inductor",
        help="how the model with a dense cache runs, default inductor",
    )


class _Stream:
    """A streamer for transformers' ``generate``: collects tokens and their times. The first call has the prompt."""

    def __init__(self, device: torch.device, on_token: Any) -> None:
        self.device, self.on_token = device, on_token
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.prompt_seen = False

    def put(self, tokens: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        synchronize(self.device)
        self.times.append(time.perf_counter())
        self.tokens += tokens.flatten().tolist()
        self.on_token(self.tokens)

    def end(self) -> None:
        pass


def run(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """The generated text, and bytes and speed with both caches."""
    from ..api import innerq

    options = backend_options(args)
    text = _text(args)
    device = device_of(args)
    tokenizer = load_tokenizer(args.model)
    ids = _tokens(tokenizer, text, args.chat).to(device)
    model = load_model(args.model, device, dtype_of(args, device), output)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and ids.shape[1] + args.tokens > limit:
        raise CommandError(
            f"the prompt has {ids.shape[1]} tokens; {args.tokens} more exceed the {limit} positions of the model: use "
            "a shorter prompt or fewer --tokens",
            usage=True,
        )
    sides = {}
    if args.compare != "none":
        plain = copy.deepcopy(model)
        if args.compare == "inductor":
            plain.compile()
        sides["plain"] = _side(plain, ids, args.tokens, output, f"dense cache, {args.compare}")
        del plain
    innerq(model, **options)

    shown = 0

    def show_new(tokens: list[int]) -> None:
        nonlocal shown
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        if not output.as_json and not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # an incomplete UTF-8 sequence
            sys.stdout.write(whole[shown:])
            sys.stdout.flush()
            shown = len(whole)

    sides["innerq"] = _side(model, ids, args.tokens, output, "quantized cache", show_new)
    output.line("\n")
    result = {
        "model": args.model,
        "options": options,
        "prompt_tokens": ids.shape[1],
        "text": tokenizer.decode(sides["innerq"]["tokens"], skip_special_tokens=True),
        **sides,
    }
    if "plain" in sides:
        ours, theirs = sides["innerq"]["tokens"], sides["plain"]["tokens"]
        pairs = list(zip(ours, theirs, strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        result["equal_from_start"] = same
    return result


def _text(args: argparse.Namespace) -> str:
    if args.file is not None:
        try:
            text = args.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--file {args.file}: {error}", usage=True) from None
    else:
        text = args.prompt if args.prompt is not None else sys.stdin.read()
    if not text.strip():
        raise CommandError("the prompt is empty: give --prompt, --file, or text on standard input", usage=True)
    return text


def _tokens(tokenizer: Any, text: str, chat: bool) -> torch.Tensor:
    if not chat:
        return tokenizer(text, return_tensors="pt")["input_ids"]
    if not getattr(tokenizer, "chat_template", None):
        raise CommandError("the model has no chat template: leave --chat out", usage=True)
    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(written, add_special_tokens=False, return_tensors="pt")["input_ids"]


def _side(
    model: Any, ids: torch.Tensor, count: int, output: Output, title: str, on_token: Any = None
) -> dict[str, Any]:
    """Tokens, bytes and speed of one model. Compiles in a first call, which is not measured."""

    def generate(count: int, streamer: Any = None) -> Any:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            return_dict_in_generate=True,
            streamer=streamer,
        )

    with output.progress(f"{title}: compiling"):
        generate(min(count, 4))
    if on_token is None:
        with output.progress(title, count) as advance:
            stream = _Stream(ids.device, lambda tokens: advance())
            out = generate(count, stream)
    else:
        stream = _Stream(ids.device, on_token)
        out = generate(count, stream)
    steps = [later - earlier for earlier, later in itertools.pairwise(stream.times)]
    return {
        "tokens": stream.tokens,
        "cache_bytes": cache_bytes(out.past_key_values),
        "tokens_per_second": 1 / statistics.median(steps) if steps else None,
    }


def show(result: dict[str, Any], output: Output) -> None:
    """Print the comparison as a table."""
    names = [name for name in ("plain", "innerq") if name in result]
    sides = [result[name] for name in names]

    def speed(side: dict[str, Any]) -> str:
        return "" if side["tokens_per_second"] is None else f"{side['tokens_per_second']:.1f}"

    rows = [
        ["cache, bytes", *(f"{side['cache_bytes']:,}" for side in sides)],
        ["decode, tokens/s", *map(speed, sides)],
    ]
    if "equal_from_start" in result:
        rows.append(["equal tokens from the start", "", f"{result['equal_from_start']} of {len(sides[-1]['tokens'])}"])
    title = f"prompt of {result['prompt_tokens']} tokens, preset {result['options']['preset']}"
    output.table(title, ["", *names], rows)
