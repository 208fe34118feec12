"""Random small decoders, compiled against eager: no rewrite may ever be wrong.

    python -m tests.helpers.random_programs --count 500 --seed 0 --jobs 2
    python -m tests.helpers.random_programs --replay 1234

:func:`random_program` draws a :class:`Program` from a seed; :func:`check` runs it eagerly and compiled in ``lossless``
and compares everything that it returns, and its cache. A program may be refused, with an error that is meant for the
user; it may never compute something else, and the compiler may never break.

Actions on the cache between two steps: ``crop`` (forget the last tokens; for buffers a position that goes back),
``reorder`` (beams), ``swap`` (layers), ``swap_sides``, ``clone``, ``branch`` (run a step, then again from before it),
``scale`` and ``drop_front`` (dense from then on), ``alias`` (all layers go on from one cache), ``restart`` (a new
prompt in the same buffers), ``zero``,
``overwrite`` (by other tokens), ``new`` (other buffers), ``gap`` (a position that jumps ahead).
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import itertools
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from innerq_compile import GraphReport, InnerQError, compiled_graphs, empty_cache
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.config import InnerQConfig
from tests.helpers.random_decoder import (
    CUTS,
    MIN,
    WIDTH,
    Program,
    RandomDecoder,
    Step,
    forget_behind,
    pack,
    unpack,
    wrapped,
)
from tests.helpers.random_latent import LATENT_FORMS
from tests.helpers.without_inductor import as_it_is, forget_graphs, through_autograd, without_inductor

_GROWN_TRICKS_NAMES = (
    "two_readers keys_mean values_feature return_scaled return_transposed return_last return_weights causal_flag "
    "append_twice append_both cat_of_cat cat_three values_from_keys values_are_keys past_only window_read "
    "keep_window prepend ignore_cache values_longer scaled_past inplace_past inplace_keys late_inplace cloned_past "
    "contiguous_past late_rotary late_norm duplicated keep_swapped keep_same keep_scaled keep_cloned shared_layer "
    "branch_on_length graph_crop graph_reorder mixed_pasts append_itself heads_rolled past_and_all view_changed "
    "crossed soft_fill"
)
GROWN_TRICKS = _GROWN_TRICKS_NAMES.split()
_BUFFER_TRICKS_NAMES = (
    "two_readers keys_mean values_feature return_scaled return_transposed return_weights causal_flag "
    "values_from_keys values_are_keys late_norm shared_layer write_after one_head one_sequence reversed "
    "values_elsewhere broadcast write_twice written_behind read_before read_far window_read decayed return_buffer "
    "swapped_sides cleared_after view_changed view_cleared crossed"
)
BUFFER_TRICKS = _BUFFER_TRICKS_NAMES.split()
#: Tricks after which there are not as many keys as positions, so that the mask is made in the graph, or left out.
_OTHER_LENGTHS = [
    "cat_of_cat",
    "cat_three",
    "past_only",
    "window_read",
    "keep_window",
    "values_longer",
    "graph_crop",
    "append_itself",
]
#: Tricks that padding goes together with.
_PADDED = ("none", "two_readers", "keys_mean", "return_scaled", "duplicated", "shared_layer", "values_feature")
GROWN_ACTIONS = ["crop", "reorder", "swap", "swap_sides", "clone", "branch", "scale", "drop_front", "alias", "restart"]
BUFFER_ACTIONS = ["crop", "restart", "zero", "overwrite", "new", "gap", "swap", "reorder", "clone"]


# --- drawing one ------------------------------------------------------------------------------------------------------


def random_program(seed: int) -> Program:
    """The program of a seed. Half of them are plain, the others have a trick or an action that is unusual."""
    rng = random.Random(seed)
    pick = rng.choice
    spelling = pick(["sdpa", "sdpa", "sdpa", "matmul", "at", "bmm", "baddbmm", "einsum", "einsum_grouped", "grouped"])
    fused = spelling == "sdpa"
    cache = pick(["tuple", "tuple", "list", "dict", "dataclass", "empty", "static", "static", "static", "typed"])
    buffers = cache in ("static", "typed")
    heads = pick([1, 2, 4])
    trick = "none"
    if rng.random() < 0.45:
        trick = pick(BUFFER_TRICKS if buffers else GROWN_TRICKS)
    mask = pick("none bool add flag" if fused else ["none", "bool", "add", "masked_fill", "where", "alibi"])
    if fused:
        mask = pick(["none", "bool", "add", "flag", "masked_fill", "where"])
    position = pick(["int", "tensor"])
    writes = "slice slice_copy narrow_copy" if position == "int" else "index_copy setitem index_put"
    both = rng.random() < 0.15
    p = Program(
        seed=seed,
        spelling=spelling,
        cache=cache,
        trick="none" if trick == "soft_fill" else trick,
        batch=pick([1, 2, 3]),
        heads=heads,
        kv_heads=pick([n for n in (1, 2, 4) if n <= heads]),
        head_dim=8 if rng.random() < 0.03 else pick([16, 16, 32]),
        layers=2 if trick == "shared_layer" else pick([1, 1, 2]),
        scale=pick(
            ["default", "default", "query", "scores"] if fused else ["default", "query", "key", "scores", "divide"]
        ),
        mask="soft_fill" if trick == "soft_fill" and not fused else mask,
        mask_from=pick(["input", "input", "graph"]),
        fill=pick([MIN, MIN, -1e9, -1e4]),
        banded=rng.random() < 0.15,
        softmax=pick(["function", "method", "float32", "cast"]),
        softcap=not fused and rng.random() < 0.2,
        dropout=not fused and rng.random() < 0.2,
        layout=pick(["BHSD", "BHSD", "BSHD"]),
        cache_layout="BSHD" if rng.random() < (0.08 if cache == "typed" else 0.4) else "BHSD",
        fused=rng.random() < 0.3,
        repeat=pick(["expand", "repeat_interleave", "gqa"]),
        rotary=rng.random() < 0.5 or trick == "late_rotary",
        qk_norm=rng.random() < 0.25,
        write=pick(writes.split() if not both else ["index_copy", "setitem"]),
        read=pick(["slice", "whole"]) if position == "int" else "whole",
        held=pick(["attribute", "argument"]),
        position="both" if both else position,
        windows=pick([(32, 96), (0, 8), (4, 16)]),
    )
    changes: dict[str, Any] = {}
    if p.buffers and p.read == "whole" and p.mask in ("none", "flag") and rng.random() < 0.8:
        changes["mask"] = "bool"
    if trick == "broadcast" and p.write == "index_copy":  # which does not broadcast
        changes["write"] = "setitem"
    if trick in _OTHER_LENGTHS and p.mask != "none":
        changes |= {"mask_from": "graph", "banded": False} if rng.random() < 0.5 else {"mask": "none"}
    if trick == "return_weights" and fused:
        changes["spelling"] = "matmul"
    p = dataclasses.replace(p, **changes)
    # -inf makes NaN of a padding row in eager mode, of which a second layer makes keys that reach every row
    masks = ("bool", "add", "masked_fill") if fused else ("add", "masked_fill")
    if trick in _PADDED and p.batch > 1 and not p.buffers and p.mask in masks:
        p = dataclasses.replace(p, padding=pick([0, 0, 2]), mask_from="input", banded=False)
    p = _with_other_kinds(random.Random(7919 * seed + 1), p)
    return dataclasses.replace(p, steps=_random_steps(rng, p))


def _with_other_kinds(rng: random.Random, p: Program) -> Program:
    """Of most programs a variant: with a window, a latent, another head_dim, slices, keywords or a wrapper."""
    pick, changes = rng.choice, dict[str, Any]()
    if rng.random() < 0.3:
        changes["head_dim"] = pick([36, 40, 100, 120, 464]) if p.trick == "none" else pick([36, 40])
    if rng.random() < 0.3:
        changes["keywords"] = True
    if rng.random() < 0.3:
        changes["wrapper"] = pick(["module", "nested", "partial"])
    if rng.random() < 0.3:
        changes["greedy"] = True
    if p.trick == "none":
        if rng.random() < 0.3:
            changes["cut"] = pick(CUTS)
        if not p.buffers:
            latent = rng.random() < 0.2
            if rng.random() < (0.1 if latent else 0.25):
                changes["window"] = pick([2, 3, 5, 8, 17, 40])
            if latent:
                changes |= {"latent": pick(LATENT_FORMS), "cache_layout": pick(["BHSD", "BHSD", "BSHD", "BSD"])}
                if p.mask not in ("none", "bool", "flag"):
                    changes["mask"] = "add"
                if p.cache == "empty":
                    changes["cache"] = "tuple"
    if changes.get("window"):
        changes |= {"banded": False, "padding": 0}
        if p.mask == "alibi":
            changes["mask"] = "add"
    return dataclasses.replace(p, **changes)


def _random_steps(rng: random.Random, p: Program) -> tuple[Step, ...]:
    prompt = rng.choice([1, 3, 5, 7, 12, 20, 40])
    steps = [Step(max(prompt, p.padding + 1, 2 if p.trick in _OTHER_LENGTHS else 1))]
    unusual = rng.random() < 0.5 and not p.padding
    chunks = rng.random() < 0.4  # each count of tokens may be a graph of its own, which takes most of the time
    for _ in range(rng.randint(2, 5)):
        action = "none"
        if unusual and rng.random() < 0.5:
            action = rng.choice(BUFFER_ACTIONS if p.buffers else GROWN_ACTIONS)
            if action == "swap_sides" and p.latent != "none":  # they have other sizes
                action = "restart"
        steps.append(Step(rng.choice([1, 1, 1, 2, 3]) if chunks else 1, action, rng.randint(1, 3)))
    return tuple(steps)


# --- running one ------------------------------------------------------------------------------------------------------


class Runner:
    """A program and its inputs, run with the decoder as it is or compiled.

    Attributes:
        outputs: what each step returned, dense: pairs of a name and a tensor.
    """

    def __init__(self, program: Program, compiled: bool) -> None:
        self.p, self.compiled = program, compiled
        self.decoder = RandomDecoder(program).eval()
        self.decoder.forgets = self.forgets and not compiled
        self.config = lossless(program)
        self.generator = torch.Generator().manual_seed(program.seed + 1)
        self.outputs: list[tuple[str, torch.Tensor]] = []
        self.step = wrapped(self.decoder, program.wrapper)
        if compiled:
            options = {name: getattr(self.config, name) for name in self.config.__dataclass_fields__}
            self.step = torch.compile(self.step, backend=innerq_backend, options=options)
        self.token: torch.Tensor | None = None
        self.caches: Any = self.new_buffers() if program.buffers else None
        self.position = 0

    def run(self) -> list[tuple[str, torch.Tensor]]:
        for index, step in enumerate(self.p.steps):
            with torch.no_grad():
                self.act(step)
                self.one(index, step.tokens)
        self.record_caches("end")
        return self.outputs

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    # --- a step

    def one(self, index: int, tokens: int) -> None:
        p = self.p
        x = self.random(p.batch, tokens, WIDTH)
        if self.token is not None:
            x[:, 0] = self.decoder.vocabulary[self.token]
        positions = torch.arange(self.position, self.position + tokens) if p.position != "int" else None
        start = self.position if p.position != "tensor" else None
        caches = self.caches
        if p.buffers and p.held == "attribute":
            self.decoder.buffers_, caches = caches, None
        x, made, extras = self.step(x, caches, positions, start, self.seen(tokens))
        if not p.buffers:
            self.caches = made
        self.outputs.append((f"step {index}", dense(x).clone()))
        if p.greedy:
            logits = dense(x)[:, -1] @ self.decoder.vocabulary.T
            self.token = logits.argmax(-1)
            self.outputs += [(f"step {index}: logits", logits), (f"step {index}: token", self.token.clone())]
        extras = [dense(extra).clone() for extra in extras]
        if p.trick == "duplicated":  # they are the caches
            extras = [self.without_padding(extra) for extra in extras]
        self.outputs += [(f"step {index}, extra {n}", extra) for n, extra in enumerate(extras)]
        self.position += tokens

    def seen(self, tokens: int) -> torch.Tensor | None:
        p = self.p
        if p.mask in ("none", "flag"):
            return None
        rows = torch.arange(self.position, self.position + tokens)[:, None]
        keys = self.position + tokens
        if p.buffers and p.read == "whole":
            keys = p.max_tokens
        elif p.buffers:
            first = max(self.position - 4, 0) if p.trick == "window_read" else 0
            keys += (2 if p.trick == "read_far" else 0) - first
        elif p.trick == "ignore_cache":
            keys, rows = tokens, torch.arange(tokens)[:, None]
        elif self.caches is not None:
            keys = self.cached + tokens
            rows = torch.arange(self.cached, self.cached + tokens)[:, None]
        columns = torch.arange(keys)
        if p.trick == "window_read" and p.buffers:
            columns = columns + max(self.position - 4, 0)
        if p.window:  # older tokens have left the cache
            first = self.position + tokens - keys
            columns, rows = columns + first, rows - rows[0] + self.position
        seen = columns <= rows
        if p.window:
            seen = seen & (columns > rows - p.window)
        if p.banded:
            seen = seen & (columns > rows - 6)
        if p.padding:
            hidden = torch.zeros(p.batch, 1, tokens, keys, dtype=torch.bool)
            hidden[-1, :, :, : p.padding] = True
            seen = seen & ~hidden
        return seen

    @property
    def forgets(self) -> bool:
        """Whether buffers of the compiled program forget what lies behind a write, as those of `empty_cache` do.

        Each forgets with a write of its own: what it held is read until then, and stays where a program never writes.
        """
        return self.p.cache == "typed" and self.p.cache_layout == "BHSD"

    @property
    def cached(self) -> int:
        """Tokens in a cache that grows."""
        return unpack(self.p.cache, self.caches[0])[0].shape[self.decoder.token_dim]

    # --- between steps

    def new_buffers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p, pairs = self.p, []
        for _ in range(p.layers):
            shape = (p.batch, p.kv_heads, p.max_tokens, p.head_dim)
            if self.forgets and self.compiled:
                pairs.append(tuple(empty_cache(*shape, role=role, config=self.config) for role in ("key", "value")))
            else:
                shape = shape if p.cache_layout == "BHSD" else (shape[0], shape[2], shape[1], shape[3])
                pairs.append((torch.zeros(shape), torch.zeros(shape)))
        return pairs

    def act(self, step: Step) -> None:
        if step.action == "none" or self.caches is None:
            return
        getattr(self, "_act_on_buffers" if self.p.buffers else "_act_on_grown")(step.action, step.amount)

    def _act_on_grown(self, action: str, amount: int) -> None:
        p, dim = self.p, self.decoder.token_dim
        if action == "swap":
            self.caches = self.caches[::-1]
            return
        if action == "alias":  # all layers append to what is one storage
            keys, values = unpack(p.cache, self.caches[0])
            self.caches = [pack(p.cache, keys[:, :], values[:, :]) for _ in self.caches]
            return
        if action == "branch":
            before, position = self.caches, self.position
            held = [copy.copy(cache) for cache in before]  # nothing may change the older cache
            self.one(-1, amount)
            self.record_caches("branch")
            self.caches, self.position = held, position
            return
        if action == "restart":  # a prompt of another length
            self.caches, self.position, self.token = None, 0, None
            self.one(-1, 4 + 3 * amount)
            return
        index = torch.randint(0, p.batch, (p.batch,), generator=self.generator)

        def changed(x):
            if action == "crop":
                end = max(x.shape[dim] - amount, 1)
                return x[:, :, :end] if dim == 2 else x[:, :end]
            if action == "reorder":
                return x.index_select(0, index)
            if action == "clone":
                return x.clone() if amount % 2 else copy.deepcopy(x)
            if action == "scale":
                return x * 1.25
            if action == "drop_front":
                return x.narrow(dim, 1, x.shape[dim] - 1) if x.shape[dim] > 1 else x
            return x

        pairs = [unpack(p.cache, cache) for cache in self.caches]
        if action == "crop":
            self.position = max(self.position - amount, 1)
        if action == "swap_sides":
            pairs = [(v, k) for k, v in pairs]
        self.caches = [pack(p.cache, changed(k), changed(v)) for k, v in pairs]

    def _act_on_buffers(self, action: str, amount: int) -> None:
        p = self.p
        if action == "crop":
            self.position = max(self.position - amount, 0)
        elif action == "restart":
            self.position = 0
            self.one(-1, 5)
        elif action == "zero":
            for buffer in self.all_buffers():
                buffer.zero_()
            self.position = 0
            self.one(-1, 4)
        elif action == "new":
            self.caches, self.position = self.new_buffers(), 0
            self.one(-1, 6)
        elif action == "gap":
            self.position += amount
        elif action == "overwrite":
            for buffer in self.all_buffers():
                if p.cache_layout == "BHSD":
                    buffer[:, :, : self.position] = self.random(p.batch, p.kv_heads, self.position, p.head_dim)
                    if self.decoder.forgets:
                        forget_behind(buffer, self.position)
                else:
                    buffer[:, : self.position] = self.random(p.batch, self.position, p.kv_heads, p.head_dim)
        elif action == "swap":
            self.caches = self.caches[::-1]
        elif action == "reorder":
            index = torch.randint(0, p.batch, (p.batch,), generator=self.generator)
            for buffer in self.all_buffers():
                buffer.copy_(buffer[index])
        elif action == "clone":
            self.caches = [(k.clone(), copy.deepcopy(v)) for k, v in self.caches]

    def all_buffers(self) -> list[torch.Tensor]:
        return [buffer for pair in self.caches for buffer in pair]

    def without_padding(self, x: torch.Tensor) -> torch.Tensor:
        """A cache, a copy that is changed: with zeros for padding tokens, which a quantized cache drops."""
        x[-1].narrow(self.decoder.token_dim - 1, 0, self.p.padding).zero_()
        return x

    def record_caches(self, when: str) -> None:
        if self.caches is None:
            return
        for layer, cache in enumerate(self.caches):
            for side, x in zip(("keys", "values"), unpack(self.p.cache, cache), strict=True):
                x = dense(x).clone()
                if self.p.cache == "typed":  # what was written, and is not forgotten
                    x = x.narrow(self.decoder.token_dim, 0, self.position)
                x = self.without_padding(x)
                self.outputs.append((f"{when}: {side} of layer {layer}", x))


def dense(x: torch.Tensor) -> torch.Tensor:
    return x.dequantize() if hasattr(x, "_storage") else x


def lossless(program: Program) -> InnerQConfig:
    sink, recent = program.windows
    return InnerQConfig.preset("lossless", sink=sink, recent=recent)


# --- judging one ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
        outcome: ``right``, ``refused`` or ``wrong``.
        rewritten: ``fully``, ``partly`` or ``not``; of the graphs that hold an attention.
        text: the refusal or the failure, in words.
        reasons: why attentions were not rewritten.
        seconds: how long it took.
    """

    program: Program
    outcome: str
    rewritten: str
    text: str = ""
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        head = f"{self.outcome}, {self.rewritten} rewritten: {self.program}"
        return "\n  ".join([head, *self.text.splitlines(), *(f"reason: {reason}" for reason in self.reasons)])


def check(program: Program) -> Verdict:
    """Run a program eagerly and compiled, and compare. To be called within :func:`without_inductor`."""
    began = time.perf_counter()
    forget_graphs()
    expected = Runner(program, compiled=False).run()
    outcome, text, outputs = "right", "", []
    try:
        runner = Runner(program, compiled=True)
        outputs = runner.outputs
        with torch._dynamo.config.patch(recompile_limit=64, accumulated_recompile_limit=1000):
            runner.run()
    except Exception as error:
        outcome = "refused" if is_refusal(error) else "wrong"
        text = f"{type(error).__name__}: {error}" if outcome == "refused" else traceback.format_exc()
    differences = _differences(outputs, expected, whole=outcome == "right")
    if differences:
        outcome, text = "wrong", "\n".join([*differences[:4], text])
    seen = [report for report in compiled_graphs() if report.attentions and not _is_prompt(report)]
    counts = [(report.rewritten, report.attentions) for report in seen]
    full = bool(counts) and all(done == found for done, found in counts)
    rewritten = "fully" if full else "partly" if any(done for done, _ in counts) else "not"
    reasons = tuple(dict.fromkeys(reason.text for report in seen for reason in report.reasons))
    silent = [report for report in compiled_graphs() if report.rewritten < report.attentions and not report.reasons]
    silent += [report for report in compiled_graphs() if not report.attentions and not report.reasons]
    if outcome == "right" and (silent or not compiled_graphs()):
        outcome, text = "wrong", "\n".join(["it was left without a reason", *map(str, silent)])
    failed = [text for text in _texts(compiled_graphs()) if " failed with " in text or "regions failed" in text]
    if outcome == "right" and failed:
        outcome, text = "wrong", failed[0]
    return Verdict(program, outcome, rewritten, text, reasons, time.perf_counter() - began)


def _texts(reports: list[GraphReport]) -> list[str]:
    """What reports say of passes and regions."""
    return [text for report in reports for text in (*(reason.text for reason in report.reasons), report.regions)]


def _is_prompt(report: GraphReport) -> bool:
    """Whether a graph writes a prompt to a buffer, whose attention is exact on purpose."""
    return bool(report.reasons) and all("tokens are written at once, as in a prefill" in str(r) for r in report.reasons)


def is_refusal(error: Exception) -> bool:
    """Whether an error is one that tells the user what cannot be done."""
    return isinstance(error, InnerQError) or (isinstance(error, RuntimeError) and str(error).startswith("innerq"))


def _differences(got: list, expected: list, whole: bool) -> list[str]:
    found = []
    for (name, x), (_, y) in zip(got, expected, strict=False):
        if x.shape != y.shape or x.dtype != y.dtype:
            found.append(f"{name}: {tuple(x.shape)} {x.dtype} instead of {tuple(y.shape)} {y.dtype}")
            continue
        try:
            torch.testing.assert_close(x, y, atol=2e-4, rtol=2e-4, equal_nan=True)
        except AssertionError:
            found.append(f"{name}: differs by {(x - y).abs().max():.3g} of {y.abs().max():.3g}")
    if whole and len(got) != len(expected):
        found.append(f"{len(got)} outputs instead of {len(expected)}")
    return found


# --- the command ------------------------------------------------------------------------------------------------------


def _judge(seed: int) -> Verdict:
    import logging
    import warnings

    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    program = random_program(seed)
    try:
        with without_inductor(through_autograd if seed % 24 == 0 else as_it_is):  # which takes six times as long
            return check(program)
    except Exception:  # the program is wrong in eager mode: a mistake of the generator
        return Verdict(program, "invalid", "not", traceback.format_exc())


def _verdicts(seeds: Sequence[int], jobs: int, seconds: float | None) -> Iterator[Verdict]:
    """Judge programs in ``jobs`` processes, and begin none after ``seconds``. A crash of a process is a verdict."""
    deadline = None if seconds is None else time.monotonic() + seconds
    waiting = iter(seeds)
    context = multiprocessing.get_context("spawn")
    again: list[int] = []  # programs that were running when a process crashed, to be run one by one
    while True:
        with ProcessPoolExecutor(jobs, context, max_tasks_per_child=200) as pool:
            running: dict[Future[Verdict], int] = {}
            try:
                while True:
                    late = deadline is not None and time.monotonic() > deadline
                    for seed in () if late or again else itertools.islice(waiting, 2 * jobs - len(running)):
                        running[pool.submit(_judge, seed)] = seed
                    if again and not running:
                        running[pool.submit(_judge, again[0])] = again[0]
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        seed = running.pop(done)
                        yield done.result()
                        if seed in again:
                            again.remove(seed)
            except BrokenProcessPool:
                crashed = sorted({seed, *running.values()})
                if len(crashed) == 1:
                    yield Verdict(random_program(crashed[0]), "wrong", "not", "the process has crashed")
                    again = [seed for seed in again if seed not in crashed]
                else:
                    again = crashed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.random_programs", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="worker processes")
    parser.add_argument("--seconds", type=float, help="begin with no program after so many; says how to go on")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one program, and show all about it")
    parser.add_argument("--kind", help="programs of one kind only, as the table names it, such as latent")
    parser.add_argument("--all", action="store_true", help="show refused and ordinary unrewritten programs, too")
    parser.add_argument("--kernels", action="store_true", help="compile C++ kernels, which takes long for each format")
    chosen = parser.parse_args(arguments)
    os.environ |= {"INNERQ_TRACES": "0", "INNERQ_PROGRESS": "0", "INNERQ_CPU_KERNELS": str(int(chosen.kernels))}
    os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")  # of the workers; it is slower with symbolic sizes
    if chosen.replay is not None:
        verdict = _judge(chosen.replay)
        print(verdict)
        return verdict.outcome not in ("right", "refused")
    seeds: Sequence[int] = range(chosen.seed, chosen.seed + chosen.count)
    if chosen.kind is not None:
        seeds = [seed for seed in seeds if chosen.kind in random_program(seed).kinds]
    verdicts, began = [], time.monotonic()
    for verdict in _verdicts(seeds, chosen.jobs, chosen.seconds):
        verdicts.append(verdict)
        missed = verdict.program.ordinary and verdict.rewritten != "fully"
        if verdict.outcome in ("wrong", "invalid") or (chosen.all and (missed or verdict.outcome == "refused")):
            print(verdict, flush=True)
        if len(verdicts) % 500 == 0:
            print(f"{len(verdicts)} programs after {time.monotonic() - began:.0f} s", flush=True)
    print(summary(verdicts))
    failed = sorted(one.program.seed for one in verdicts if one.outcome in ("wrong", "invalid"))
    print(f"seeds of failures: {', '.join(map(str, failed)) or 'none'}")
    if left := sorted(set(seeds) - {one.program.seed for one in verdicts}):
        print(f"not all were run: go on with --seed {left[0]} --count {chosen.seed + chosen.count - left[0]}")
    return bool(failed)


def summary(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return "no program was run"

    def counted(chosen: list[Verdict]) -> str:
        outcomes = collections.Counter(verdict.outcome for verdict in chosen)
        done = collections.Counter(verdict.rewritten for verdict in chosen if verdict.outcome == "right")
        words = [f"{count} {outcome}" for outcome, count in sorted(outcomes.items())]
        return f"{', '.join(words)}; of those right, " + ", ".join(f"{done[k]} {k}" for k in ("fully", "partly", "not"))

    ordinary = [verdict for verdict in verdicts if verdict.program.ordinary]
    others = [verdict for verdict in verdicts if not verdict.program.ordinary]
    reasons = collections.Counter(reason for verdict in ordinary for reason in verdict.reasons)
    others_reasons = collections.Counter(reason for verdict in others for reason in verdict.reasons)
    refusals = collections.Counter(v.text.split("\n")[0][:150] for v in verdicts if v.outcome == "refused")
    lines = [
        f"{len(verdicts)} programs: {counted(verdicts)} rewritten",
        f"  {len(ordinary)} ordinary: {counted(ordinary)} rewritten",
        f"  {len(others)} with a trick: {counted(others)} rewritten",
        f"  slowest: {max(verdict.seconds for verdict in verdicts):.1f} s",
        *_by_kind(verdicts),
        "reasons in ordinary programs:",
        *(f"  {count:4} {reason}" for reason, count in reasons.most_common(12)),
        "reasons in the others:",
        *(f"  {count:4} {reason}" for reason, count in others_reasons.most_common(20)),
        "refusals:",
        *(f"  {count:4} {text}" for text, count in refusals.most_common(12)),
    ]
    return "\n".join(lines)


def _by_kind(verdicts: list[Verdict]) -> Iterator[str]:
    """A line for each kind of program, whose numbers overlap."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for verdict in verdicts:
        became = verdict.outcome if verdict.outcome != "right" else f"{verdict.rewritten} rewritten"
        for kind in verdict.program.kinds:
            counts[kind][became] += 1
    columns = ["fully rewritten", "partly rewritten", "not rewritten", "refused", "wrong", "invalid"]
    yield f"  {'':14}" + "".join(f"{column:>18}" for column in columns)
    for kind, found in sorted(counts.items()):
        yield f"  {kind:14}" + "".join(f"{found[column]:18}" for column in columns)


if __name__ == "__main__":
    sys.exit(main())
