"""The report of a compiled graph: written by the compiler, counted in by calls, read by ``inspect`` and users."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable
from typing import Any

from ..cache.storage import CacheStorage
from ..kernels.backend import Kernel, KernelChoice
from ..passes.context import Reason
from ..scoped import Scoped


class _StrEnum(str, enum.Enum):
    """An enum whose members equal their string values, print as them, and serialize to JSON as them."""

    def __str__(self) -> str:
        return str(self.value)


class GraphKind(_StrEnum):
    """What a graph does with quantized caches.

    Attributes:
        PREFILL: It creates them.
        DECODE: It takes them as inputs.
        PLAIN: It has none.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    PLAIN = "plain"


class CacheForm(_StrEnum):
    """How an attention gets its keys and values.

    Attributes:
        APPENDED: Cached tokens and new ones, concatenated.
        READ: Cached tokens only, as in cross-attention.
        FRESH: The tokens of a prompt, which become a new cache.
        BUFFER: An :class:`InnerQBuffer`.
        SHADOW: A preallocated dense buffer of the program, of which a quantized copy is kept.
    """

    APPENDED = "grows by cat"
    READ = "read, not written"
    FRESH = "begins here"
    BUFFER = "quantized buffer"
    SHADOW = "dense buffer with a quantized shadow"


class ServedBy(enum.Enum):
    """What computes an attention.

    Attributes:
        PROGRAM: The program's own attention; it was not rewritten.
        PROGRAM_EXACT: The program's own attention, on a prompt's keys and values before they are quantized.
        PROGRAM_DEQUANTIZED: The program's own attention on dequantized caches, because rewriting is switched off.
        TRITON_FIELDS: The Triton kernel that computes on packed fields.
        TRITON_PORTABLE: The portable Triton kernel.
        CPP: The C++ kernel.
        REFERENCE: The reference implementation in plain torch.
    """

    PROGRAM = enum.auto()
    PROGRAM_EXACT = enum.auto()
    PROGRAM_DEQUANTIZED = enum.auto()
    TRITON_FIELDS = enum.auto()
    TRITON_PORTABLE = enum.auto()
    CPP = enum.auto()
    REFERENCE = enum.auto()


_KERNELS = {
    Kernel.TRITON_FIELDS: ServedBy.TRITON_FIELDS,
    Kernel.TRITON_PORTABLE: ServedBy.TRITON_PORTABLE,
    Kernel.CPP: ServedBy.CPP,
    Kernel.REFERENCE: ServedBy.REFERENCE,
}

#: The short text of each, and what the long text adds.
_SERVED_BY_TEXTS = {
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
    """What computes an attention. ``str`` describes it.

    Attributes:
        served_by: What computes it.
        reason: Why no faster kernel is used; empty if this is the fastest.
    """

    served_by: ServedBy = ServedBy.PROGRAM
    reason: str = ""

    @staticmethod
    def of(choice: KernelChoice) -> AttentionKernel:
        """The kernel that serves an attention to a quantized cache."""
        return AttentionKernel(_KERNELS[choice.kernel], choice.reason)

    @property
    def short(self) -> str:
        """The description without the reason."""
        return _SERVED_BY_TEXTS[self.served_by][0]

    def __str__(self) -> str:
        name = ", ".join(filter(None, _SERVED_BY_TEXTS[self.served_by]))
        return f"{name}: {self.reason}" if self.reason else name


class KeyNormOrigin(enum.Enum):
    """Where the key normalization is applied in a graph that applies it neither to a query nor to a new key.

    Attributes:
        ABSENT: The keys are not normalized.
        FROM_PROMPT: It is computed here, from the keys of the prompt.
        WITH_DEQUANTIZED: Dequantization undoes it.
    """

    ABSENT = "none"
    FROM_PROMPT = "computed from the prompt"
    WITH_DEQUANTIZED = "undone by dequantization"


@dataclasses.dataclass(frozen=True)
class KeyNormReport:
    """Where the key normalization of an attention is applied. ``str`` describes it.

    Attributes:
        query: Where the query is multiplied by it; empty if it is not.
        new_key: Where the new keys are divided by it; empty if they are not.
        origin: Where it is applied if both are empty.
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
        """The first part of the description."""
        return self._parts[0]

    def __str__(self) -> str:
        return ", ".join(self._parts)


class CudaGraphUse(enum.Enum):
    """Whether a graph runs as a CUDA graph.

    Attributes:
        NOT_ASKED_FOR: CUDA graphs were not requested.
        USED: It does.
        NOT_USED: It does not, although requested.
        SKIPPED: Inductor skipped CUDA graphs; Dynamo's metrics give the reason once the compilation is over.
    """

    NOT_ASKED_FOR = enum.auto()
    USED = enum.auto()
    NOT_USED = enum.auto()
    SKIPPED = enum.auto()


_USES = {
    CudaGraphUse.NOT_ASKED_FOR: "not asked for",
    CudaGraphUse.USED: "yes",
    CudaGraphUse.NOT_USED: "no",
    CudaGraphUse.SKIPPED: "no: Inductor skipped them",
}


@dataclasses.dataclass(frozen=True)
class CudaGraphs:
    """Whether a graph runs as a CUDA graph. ``str`` gives ``yes``, ``no: REASON`` or ``not asked for``.

    Attributes:
        use: Whether it does.
        detail: The reason if it does not; a note if it does. May be empty.
    """

    use: CudaGraphUse = CudaGraphUse.NOT_ASKED_FOR
    detail: str = ""

    def __str__(self) -> str:
        between = "; " if self.use is CudaGraphUse.USED else ": "
        return between.join(filter(None, (_USES[self.use], self.detail)))


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How one attention of a graph was compiled.

    Attributes:
        layer: The module that calls it, as ``model.layers.0.self_attn``; may be empty.
        where: The line of the user's program, as ``File "...", line N, in f: code``; may be empty.
        match: ``sdpa`` or ``eager``; empty if the attention was not recognized.
        cache: How it gets its keys and values; None if it was not rewritten.
        mask: A description of its mask, such as ``none``.
        key: The format of its key cache (``CacheFormat.spec``); empty if it has none.
        value: The format of its value cache; empty if it has none.
        heads: Number of KV heads.
        head_dim: Elements of a key.
        value_dim: Elements of a value.
        dtype: The dtype of keys and values before quantization, as ``bfloat16``.
        key_norm: Where the key normalization is applied; None if it was not rewritten.
        kernel: What computes it.
        rewritten: Whether it reads or creates quantized caches.
        reason: Why it was not rewritten; empty if it was.
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
        """``where`` in short: ``FILE:LINE`` without folders."""
        path, _, rest = self.where.removeprefix('File "').partition('", line ')
        number = rest.split(",")[0]
        return f"{path.rsplit('/', 1)[-1]}:{number}" if number else ""

    def to_dict(self) -> dict[str, Any]:
        """The report as a dict of JSON values."""
        shown = {name: str(getattr(self, name) or "") for name in ("cache", "key_norm", "kernel")}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown


#: Guards the counters of all reports: several threads may run the same graph.
_COUNTING = threading.Lock()


@dataclasses.dataclass(eq=False)
class GraphReport:
    """How one graph was compiled, and how often it has run.

    Attributes:
        kind: What the graph does with quantized caches.
        attentions: How many attentions it has, recognized or not.
        rewritten: How many of them were rewritten.
        reasons: Why the others were not rewritten, or why the graph has no attention.
        index: Number of the graph in this process, from 0.
        layers: A report for each attention.
        config: The config in short, as ``"base, recent=128"``.
        rewrite: ``InnerQConfig.rewrite``; if False, the attentions counted as rewritten read dequantized caches.
        left_out: Passes that did not run: those switched off, and those that depend on one of them.
        cuda_graphs: Whether the graph runs as a CUDA graph.
        compile_id: Dynamo's id of the compilation, ``FRAME/COUNT``.
        compiled_at: Time of the compilation, in microseconds since the epoch.
        calls: How often the graph has run.
        recorded: How many CUDA graphs innerq-compile has recorded of it; those of Inductor are not counted.
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
        """The report as a dict of JSON values."""
        shown = {
            "kind": str(self.kind),
            "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
            "layers": [layer.to_dict() for layer in self.layers],
            "cuda_graphs": str(self.cuda_graphs),
        }
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown

    def has_run(self, storages: list[CacheStorage]) -> None:
        """Count a call and notify the observers.

        Args:
            storages: The storages of the graph's caches; may be empty if there is no observer.
        """
        with _COUNTING:
            self.calls += 1
        if RUN_OBSERVERS.opened:
            for observer in RUN_OBSERVERS.values():
                observer(self, storages)

    def has_recorded(self) -> None:
        """Count a recorded CUDA graph."""
        with _COUNTING:
            self.recorded += 1


#: Called after each run of a compiled graph, with its report and the storages of its caches.
RUN_OBSERVERS: Scoped[Callable[[GraphReport, list[CacheStorage]], None]] = Scoped("innerq_run_observers")
