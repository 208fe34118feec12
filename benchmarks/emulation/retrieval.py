"""Questions with discrete answers about a long context: a needle, a list of keys and values, a list of numbers.

The context is prefilled; question and answer go through the cache. An answer is right if each of its tokens is the most
likely one, given the question and the tokens of the answer before it.
"""

from __future__ import annotations

import dataclasses
import random

import torch

from .decode import Emulation, Format
from .documents import first_tokens

CONTEXT = 1250
THINGS = ("lighthouse harbour orchard library mountain river castle garden bakery station museum theatre ").split()  # noqa: SIM905
WORDS = [
    "apple",
    "basket",
    "candle",
    "dragon",
    "engine",
    "feather",
    "garlic",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "magnet",
    "needle",
    "orange",
    "pencil",
    "quartz",
    "rabbit",
    "saddle",
    "ticket",
    "umbrella",
    "velvet",
    "window",
    "yellow",
    "zipper",
    "anchor",
    "bottle",
    "camera",
    "desert",
    "eleven",
    "forest",
    "guitar",
    "helmet",
    "insect",
    "jungle",
    "kitten",
    "lemon",
    "mirror",
    "nectar",
    "ocean",
    "parrot",
    "ribbon",
    "silver",
    "tunnel",
    "violin",
    "wizard",
]


@dataclasses.dataclass(frozen=True)
class Questions:
    """Token ids ``[N, S]``, padded on the right; the answer to row n is at ``first[n] ... last[n] - 1``."""

    tokens: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    prompt: int

    def first_rows(self, count: int) -> Questions:
        return Questions(self.tokens[:count], self.first[:count], self.last[:count], self.prompt)


def _prose(rng: random.Random, filler: str) -> str:
    sentences = filler.split(". ")
    begin = rng.randrange(max(1, len(sentences) - 150))
    return ". ".join(sentences[begin : begin + 150])


# Each task gives what is inserted into the text, the question, and its answer.


def _needle(rng: random.Random) -> tuple[str, str, str]:
    thing, number = rng.choice(THINGS), rng.randrange(10000, 100000)
    needle = f"The secret number of the {thing} is"
    return f" {needle} {number}. ", f"\n\n{needle}", f" {number}"


def _pairs(rng: random.Random) -> tuple[str, str, str]:
    """A list of keys and values, and three examples of questions with answers."""
    lines = {key: f"{key}: {rng.randrange(1000, 10000)}\n" for key in rng.sample(WORDS, len(WORDS))}
    *shown, asked = rng.sample(list(lines), 4)
    question = "\n\n" + "".join(lines[key] for key in shown) + f"{asked}:"
    return "\n\n" + "".join(lines.values()) + "\n", question, lines[asked].removeprefix(f"{asked}:").rstrip()


def _copying(rng: random.Random) -> tuple[str, str, str]:
    """A list of numbers, and eight consecutive ones of it: the answer is the two that follow."""
    numbers = [str(rng.randrange(100, 1000)) for _ in range(48)]
    at = rng.randrange(8, len(numbers) - 2)
    begin, answer = " ".join(numbers[at - 8 : at]), " ".join(numbers[at : at + 2])
    return f"\n\nThe list: {' '.join(numbers)}\n\n", f"\n\nThe list again: ... {begin}", f" {answer}"


TASKS = {"needle": _needle, "key-value": _pairs, "copying": _copying}


def _fitted(tokenize, task: str, rng: random.Random, filler: str) -> tuple[list[int], list[int], list[int]]:
    """Tokens of context (exactly ``CONTEXT``), question and answer."""
    text, (inserted, question, answer) = _prose(rng, filler), TASKS[task](rng)
    body, inserted = tokenize(text), tokenize(inserted)
    room = CONTEXT - len(inserted)
    if len(body) < room or room < 256:
        raise SystemExit(f"{len(body)} tokens of prose and {len(inserted)} do not make a context of {CONTEXT}")
    place = rng.randrange(32, room - 160)  # neither among the sinks nor in the recent window
    context = body[:place] + inserted + body[place:room]
    asked, whole = tokenize(question), tokenize(question + answer)
    if whole[: len(asked)] != asked:
        raise SystemExit(f"{question + answer!r} does not begin with the tokens of its question")
    return context, asked, whole[len(asked) :]


def questions(tokenizer, filler: str, count: int, seed: int = 0) -> dict[str, Questions]:
    """``count`` questions of each task, in contexts of text from ``filler``."""
    begin = first_tokens(tokenizer)

    def tokenize(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    made = {}
    for task in TASKS:
        rng = random.Random(f"{task} {seed}")
        rows, first, last = [], [], []
        for _ in range(count):
            context, asked, answer = _fitted(tokenize, task, rng, filler)
            row = begin + context + asked + answer
            first.append(len(row) - len(answer))
            last.append(len(row))
            rows.append(row)
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows], dtype=torch.int32)
        made[task] = Questions(tokens, torch.tensor(first), torch.tensor(last), len(begin) + CONTEXT)
    return made


@torch.no_grad()
def answers(model, asked: Questions, formats: list[Format | None], batch: int, device: str, tick, sliding=False):
    """Which answers are right, bool ``[N]``, for each format (None: full precision). ``tick`` is called each batch."""
    right: list[list[torch.Tensor]] = [[] for _ in formats]
    for begin in range(0, len(asked.tokens), batch):
        rows = slice(begin, begin + batch)
        tokens = asked.tokens[rows].long().to(device)
        emulation = Emulation(model, tokens, asked.prompt, sliding, reference=False)
        place = torch.arange(asked.prompt + 1, tokens.shape[1])
        ours = (place >= asked.first[rows, None]) & (place < asked.last[rows, None])
        for found, fmt in zip(right, formats, strict=True):
            said = emulation.logits(fmt)[:, :-1].argmax(-1)
            found.append(((said == tokens[:, asked.prompt + 1 :]).cpu() | ~ours).all(-1))
            tick()
    return [torch.cat(found) for found in right]
