"""What is recorded of each graph: the compiler writes it, calls count in it, ``inspect`` and users read it."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable
from typing import Any

from ..cache.storage import CacheStorage
from ..passes.context import Reason
from ..scoped import Scoped


class _Word(str, enum.Enum):
    """One of a few words. It is equal to the word, prints as it, and JSON takes it."""

    def __str__(self) -> str:
        return str(self.value)


class GraphKind(_Word):
    """What a graph does with quantized caches."""

    PREFILL = "prefill"  # they leave it
    DECODE = "decode"  # they enter it
    PLAIN = "plain"  # it has none


class CacheForm(_Word):
    """How the keys and values of an attention come about."""

    APPENDED = "grows by cat"
    READ = "read, not written"
    FRESH = "begins here"
    BUFFER = "quantized buffer"
    SHADOW = "dense buffer with a quantized shadow"


class ServedBy(enum.Enum):
    """What computes an attention."""

    PROGRAM = enum.auto()  # which was not rewritten
    PROGRAM_EXACT = enum.auto()  # a prompt, on the keys and values before they are quantized
    PROGRAM_DEQUANTIZED = enum.auto()  # where rewriting is switched off
    TRITON_FIELDS = enum.auto()
    TRITON_PORTABLE = enum.auto()
    CPP = enum.auto()
    REFERENCE = enum.auto()  # plain torch


#: In words: in short, and what is added where there is room.
_SERVERS = {
    ServedBy.PROGRAM: ("the program's own attention", ""),
    ServedBy.PROGRAM_EXACT: ("the program's own attention", "on exact keys and values"),
    ServedBy.PROGRAM_DEQUANTIZED: ("the program's own attention", "on dequantized keys and values"),
    ServedBy.TRITON_FIELDS: ("Triton", "on packed fields"),
    ServedBy.TRITON_PORTABLE: ("Triton, portable", ""),
    ServedBy.CPP: ("C++", ""),
    ServedBy.REFERENCE: ("reference", ""),
}


@dataclasses.dataclass(frozen=True)
class AttentionKernel:
    """What computes an attention. Prints in words.

    Attributes:
        served_by: what does.
        reason: why nothing faster does; may be empty.
    """

    served_by: ServedBy = ServedBy.PROGRAM
    reason: str = ""

    @property
    def short(self) -> str:
        """In few words."""
        return _SERVERS[self.served_by][0]

    def __str__(self) -> str:
        name = ", ".join(filter(None, _SERVERS[self.served_by]))
        return f"{name}: {self.reason}" if self.reason else name


class KeyNormOrigin(enum.Enum):
    """How a key normalization comes about where no query and no new key of the graph are multiplied by it."""

    ABSENT = "none"
    FROM_PROMPT = "taken from the prompt"
    WITH_DEQUANTIZED = "in the dequantized keys"


@dataclasses.dataclass(frozen=True)
class KeyNormReport:
    """Where the key normalization of an attention went. Prints in words.

    Attributes:
        query, new_key: where the query is multiplied by it and the new key divided; empty where they are not.
        origin: how it comes about where both are empty.
    """

    query: str = ""
    new_key: str = ""
    origin: KeyNormOrigin = KeyNormOrigin.ABSENT

    @property
    def _parts(self) -> list[str]:
        places = (("query", self.query), ("new key", self.new_key))
        return [f"{what}: {place}" for what, place in places if place] or [self.origin.value]

    @property
    def short(self) -> str:
        """In few words."""
        return self._parts[0]

    def __str__(self) -> str:
        return ", ".join(self._parts)


class CudaGraphUse(enum.Enum):
    """Whether a graph runs as a CUDA graph."""

    NOT_ASKED_FOR = enum.auto()
    USED = enum.auto()
    NOT_USED = enum.auto()
    SKIPPED = enum.auto()  # by Inductor: Dynamo's metrics say why once the compilation is over


_USES = {
    CudaGraphUse.NOT_ASKED_FOR: "not asked for",
    CudaGraphUse.USED: "yes",
    CudaGraphUse.NOT_USED: "no",
    CudaGraphUse.SKIPPED: "no: Inductor skipped them",
}


@dataclasses.dataclass(frozen=True)
class CudaGraphs:
    """Whether a graph runs as a CUDA graph. Prints as ``yes`` or ``no: why``.

    Attributes:
        use: whether it does.
        detail: why it does not; what else is to be known where it does. May be empty.
    """

    use: CudaGraphUse = CudaGraphUse.NOT_ASKED_FOR
    detail: str = ""

    def __str__(self) -> str:
        between = "; " if self.use is CudaGraphUse.USED else ": "
        return between.join(filter(None, (_USES[self.use], self.detail)))


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one attention of one graph.

    Attributes:
        layer: the module that runs it, as ``model.layers.0.self_attn``; may be empty.
        where: the line of the user's program, ``File "...", line N, in f: code``; may be empty.
        match: ``sdpa`` or ``eager``; empty where the attention was not understood.
        cache: how its keys and values come about; None where it was not rewritten.
        mask: what its mask is, in words.
        key, value: the formats of its caches (``CacheFormat.spec``); empty where it has none.
        heads, head_dim, value_dim: of its caches.
        dtype: of what the caches stand for.
        key_norm: where the key normalization went; None where it was not rewritten.
        kernel: what computes it, and why nothing faster does.
        rewritten: whether it works on quantized caches, or makes them.
        reason: why it does not.
    """

    layer: str
    where: str
    match: str = ""
    cache: CacheForm | None = None
    mask: str = ""
    key: str = ""
    value: str = ""
    heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    dtype: str = ""
    key_norm: KeyNormReport | None = None
    kernel: AttentionKernel = AttentionKernel()
    rewritten: bool = False
    reason: str = ""

    @property
    def line(self) -> str:
        """``where`` in short: the file's name and the number of the line."""
        path, _, rest = self.where.removeprefix('File "').partition('", line ')
        number = rest.split(",")[0]
        return f"{path.rsplit('/', 1)[-1]}:{number}" if number else ""

    def to_dict(self) -> dict[str, Any]:
        """Itself in words and numbers, as JSON takes it."""
        shown = {name: str(getattr(self, name) or "") for name in ("cache", "key_norm", "kernel")}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown


#: Threads count their calls in the same report.
_COUNTING = threading.Lock()


@dataclasses.dataclass(eq=False)
class GraphReport:
    """What became of one graph.

    Attributes:
        kind: what it does with quantized caches.
        attentions: places that look like attention.
        rewritten: how many of them were rewritten.
        reasons: why the others were not, or why there is none.
        index: the number of the graph in this process.
        layers: what became of each attention.
        config: the config in words.
        rewrite: the config's switch; without it, "rewritten" attentions read dequantized caches.
        left_out: passes that were switched off, or needed one that was.
        cuda_graphs: whether CUDA graphs were asked for and are used, and why not.
        compile_id: Dynamo's id of the compilation, ``frame/how often``.
        compiled_at: time of the compilation, microseconds since the epoch.
        calls: how often the graph has run.
        recorded: how many CUDA graphs were recorded of it (``recordings.py``; those of Inductor are not counted).
    """

    kind: GraphKind
    attentions: int
    rewritten: int
    reasons: tuple[Reason, ...]
    index: int = 0
    layers: tuple[LayerReport, ...] = ()
    config: str = ""
    rewrite: bool = True
    left_out: tuple[str, ...] = ()
    cuda_graphs: CudaGraphs = CudaGraphs()
    compile_id: str = ""
    compiled_at: int = 0
    calls: int = 0
    recorded: int = 0

    @property
    def headline(self) -> str:
        """The report in one line."""
        done = "rewritten" if self.rewrite else "served dequantized"
        line = f"graph {self.index}: {self.rewritten}/{self.attentions} attentions {done}, {self.kind}, {self.config}"
        if self.left_out:
            line += f", without {', '.join(self.left_out)}"
        return line

    def __str__(self) -> str:
        return "\n  ".join([self.headline, *map(str, self.reasons)])

    def to_dict(self) -> dict[str, Any]:
        """Itself in words and numbers, as JSON takes it."""
        shown = {
            "kind": str(self.kind),
            "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
            "layers": [layer.to_dict() for layer in self.layers],
            "cuda_graphs": str(self.cuda_graphs),
        }
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown

    def has_run(self, storages: list[CacheStorage]) -> None:
        """Note that the graph was called; ``storages`` are those of its caches, as far as anybody asks for them."""
        with _COUNTING:
            self.calls += 1
        if RUN_OBSERVERS.opened:
            for observer in RUN_OBSERVERS.values():
                observer(self, storages)

    def has_recorded(self) -> None:
        """Note that a CUDA graph of the graph was recorded."""
        with _COUNTING:
            self.recorded += 1


#: Called with the report of a graph and the storages of its caches whenever a compiled graph has run.
RUN_OBSERVERS: Scoped[Callable[[GraphReport, list[CacheStorage]], None]] = Scoped("innerq_run_observers")
