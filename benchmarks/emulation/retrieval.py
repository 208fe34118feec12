"""Questions with discrete answers about a long context: a needle, a list of keys and values, rows of numbers.

The context is prefilled; question and answer go through the cache. An answer counts when the model, given the question
and what the answer should be so far, would say each of its tokens next.
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


def _needle(rng, filler: str):
    thing, number = rng.choice(THINGS), rng.randrange(10000, 100000)
    sentences = filler.split(". ")
    begin = rng.randrange(max(1, len(sentences) - 150))
    sentences = sentences[begin : begin + 150]
    needle = f"The secret number of the {thing} is {number}"
    # where it stands within the tokens that are kept is decided by `fitted`
    return (". ".join(sentences), f" {needle}. "), f"\n\nThe secret number of the {thing} is", f" {number}"


def _pairs(rng, filler: str):
    keys = [f"{a}-{b}" for a, b in zip(rng.sample(WORDS, 46), rng.sample(WORDS, 46), strict=True)]
    keys += [f"{a}-{b}" for a, b in zip(rng.sample(WORDS, 46), rng.sample(WORDS, 46), strict=True)]
    values = {key: rng.randrange(1000, 10000) for key in keys}
    lines = [f"{key}: {value}\n" for key, value in values.items()]
    return lines, None, {key: f" {value}" for key, value in values.items()}


def _rows(rng, filler: str):
    rows = {i: [rng.randrange(100, 1000) for _ in range(4)] for i in range(1, 90)}
    lines = [f"Row {i}: {' '.join(map(str, row))}\n" for i, row in rows.items()]
    return lines, None, {f"Row {i}": f" {' '.join(map(str, row))}" for i, row in rows.items()}


TASKS = {"needle": _needle, "key-value": _pairs, "copying": _rows}


def _fitted(tokenize, task: str, rng, filler: str) -> tuple[list[int], list[int], list[int]]:
    """Tokens of context (exactly ``CONTEXT``), question and answer."""
    made, question, answers = TASKS[task](rng, filler)
    if task == "needle":
        text, needle = made
        body, inserted = tokenize(text), tokenize(needle)
        room = CONTEXT - len(inserted)
        if len(body) < room:
            raise SystemExit(f"filler of {len(body)} tokens is too short for a context of {CONTEXT}")
        place = rng.randrange(32, room - 160)  # neither among the sinks nor in the recent window
        context, answer = body[:place] + inserted + body[place:room], answers
    else:
        lines = [tokenize(line) for line in made]
        held, context = 0, []
        while held < len(lines) and len(context) + len(lines[held]) <= CONTEXT:
            context += lines[held]
            held += 1
        context = tokenize("\n") * (CONTEXT - len(context)) + context
        asked = rng.randrange(4, held - 12)
        key = list(answers)[asked]
        question, answer = f"\nAgain, {key}:", answers[key]
    asked = tokenize(question)
    whole = tokenize(question + answer)
    if whole[: len(asked)] != asked:
        raise SystemExit(f"{question + answer!r} does not begin with the tokens of its question")
    return context, asked, whole[len(asked) :]


def questions(tokenizer, filler: str, count: int, seed: int = 0) -> dict[str, Questions]:
    """``count`` questions of each task. ``filler``: prose, long."""
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
    """For each format (None: full precision) which answers are right, bool ``[N]``. ``tick`` is called after each."""
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
