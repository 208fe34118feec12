"""A real model with its plain cache and with the quantized one, side by side: ``make demo``.

Both are compiled, both continue the same long prompt greedily. The table at the end compares the bytes of the two
caches, the tokens that came out, and the speed of decoding.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from dataclasses import dataclass, field

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from smollm2 import load, prose

from innerq_compile import PRESETS, InnerQTensor, innerq

QUESTION = "Using the text above, explain in your own words what the with statement of Python is for."


@dataclass
class Side:
    """One of the two runs: what it is, and what came of it."""

    title: str
    model: torch.nn.Module
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    status: str = "waiting"
    cache_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Of the median decode step; prefill is over when the first token is there."""
        return 1 / statistics.median(later - earlier for earlier, later in itertools.pairwise(self.times))


class Stream:
    """What ``generate`` hands its tokens to, one by one; the first call carries the prompt."""

    def __init__(self, side: Side, on_token) -> None:
        self.side, self.on_token, self.prompt_seen = side, on_token, False

    def put(self, tokens: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.side.times.append(time.perf_counter())
        self.side.tokens.extend(tokens.flatten().tolist())
        self.on_token(self.side)

    def end(self) -> None:
        pass


class Teacher:
    """A logits processor that makes ``generate`` follow given tokens, and notes what it would have said instead."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.said = tokens, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.said.append(int(scores.argmax()))
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.tokens[len(self.said) - 1]] = 0.0
        return forced


def cache_bytes(cache) -> int:
    """Bytes of the tensors that a DynamicCache holds, measured."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(t.nbytes_held if isinstance(t, InnerQTensor) else t.nbytes for t in tensors)


def build_prompt(tokenizer, context: int) -> torch.Tensor:
    """Token ids ``[1, context]``: a long text and a question about it, as a chat."""

    def chat(text: str) -> list[int]:
        messages = [{"role": "user", "content": f"{text}\n\n{QUESTION}"}]
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(written, add_special_tokens=False)["input_ids"]

    text = tokenizer(prose(), add_special_tokens=False)["input_ids"]
    kept = max(0, context - len(chat("")))
    return torch.tensor([chat(tokenizer.decode(text[:kept]))])


def generate(side: Side, prompt: torch.Tensor, count: int, **options):
    """``count`` tokens by transformers' own ``generate``, greedily."""
    return side.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        return_dict_in_generate=True,
        **options,
    )


def tail(text: str, characters: int = 560) -> str:
    """What of a text fits a panel: its end."""
    return text if len(text) <= characters else "…" + text[-characters:]


def results(plain: Side, ours: Side, said: list[int], context: int) -> Table:
    equal = [a == b for a, b in zip(plain.tokens, ours.tokens, strict=True)]
    in_front = equal.index(False) if False in equal else len(equal)
    taught = sum(a == b for a, b in zip(plain.tokens, said, strict=True))
    count = len(equal)

    table = Table(title=f"{context} tokens of prompt, {count} new tokens", title_justify="left")
    table.add_column("")
    table.add_column(plain.title, justify="right")
    table.add_column(ours.title, justify="right")
    table.add_column("", justify="right")
    ratio = plain.cache_bytes / ours.cache_bytes
    table.add_row("cache, bytes", f"{plain.cache_bytes:,}", f"{ours.cache_bytes:,}", f"{ratio:.2f}x smaller")
    speed = ours.tokens_per_second / plain.tokens_per_second
    table.add_row(
        "decode, tokens/s", f"{plain.tokens_per_second:.1f}", f"{ours.tokens_per_second:.1f}", f"{speed:.2f}x as fast"
    )
    table.add_row("same next token, given the same text", "", f"{taught} of {count}", f"{taught / count:.0%}")
    table.add_row("same text from the start", "", f"{in_front} of {count}", f"{in_front / count:.0%}")
    table.add_row("same token at the same place", "", f"{sum(equal)} of {count}", f"{sum(equal) / count:.0%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate (default 128)")
    parser.add_argument("--context", type=int, default=2048, help="tokens of the prompt, 64 to 8000 (default 2048)")
    parser.add_argument("--preset", choices=list(PRESETS), default="base", help="of the quantized cache (default base)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--plain", choices=["inductor", "eager"], default="inductor", help="how the plain side runs")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    args = parser.parse_args()
    if not 64 <= args.context <= 8000 or not 2 <= args.tokens <= 8192 - args.context:
        parser.error("--context has to be 64 to 8000 and --tokens 2 or more, 8192 together: the model knows no more")
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    console = Console()
    with console.status("Loading SmolLM2-135M-Instruct"):
        model, tokenizer = load(getattr(torch, args.dtype))
        prompt = build_prompt(tokenizer, args.context)
    plain = Side(f"plain cache ({args.plain})", model)
    ours = Side(f"innerq cache ({args.preset})", copy.deepcopy(model))
    if args.plain == "inductor":
        plain.model.compile()
    innerq(ours.model, preset=args.preset)

    progress = Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.completed:>4.0f}/{task.total:.0f} tokens  {task.fields[status]}"),
        TimeElapsedColumn(),
        console=console,
    )
    bars = {side.title: progress.add_task(side.title, total=args.tokens, status=side.status) for side in (plain, ours)}
    bars["check"] = progress.add_task("the same text, given", total=args.tokens, status="waiting", start=False)

    def screen() -> Group:
        texts = Table.grid(expand=True)
        texts.add_column(ratio=1)
        texts.add_column(ratio=1)
        texts.add_row(
            *(Panel(Text(tail(tokenizer.decode(side.tokens))), title=side.title, height=18) for side in (plain, ours))
        )
        return Group(texts, progress)

    with Live(get_renderable=screen, console=console, refresh_per_second=4):

        def show(side: Side) -> None:
            progress.update(bars[side.title], completed=len(side.tokens), status=side.status)

        for side in (plain, ours):
            side.status = "compiling" if side is ours or args.plain == "inductor" else "warming up"
            show(side)
            generate(side, prompt, 4)
            progress.reset(bars[side.title])
            side.status = "generating"
            output = generate(side, prompt, args.tokens, streamer=Stream(side, show))
            side.cache_bytes = cache_bytes(output.past_key_values)
            side.status = f"{side.tokens_per_second:.1f} tokens/s"
            show(side)
            del output

        progress.start_task(bars["check"])
        teacher = Teacher(plain.tokens)
        followed = Side("", ours.model)
        stream = Stream(followed, lambda side: progress.update(bars["check"], completed=len(side.tokens), status=""))
        generate(followed, prompt, args.tokens, streamer=stream, logits_processor=[teacher])

    console.print()
    console.print(results(plain, ours, teacher.said, prompt.shape[1]))


if __name__ == "__main__":
    main()
