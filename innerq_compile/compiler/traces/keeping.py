"""Keeps what Dynamo has found about a frame, and restores it where Dynamo would find the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import logging
import os
import pathlib
import pickle
import sys
import types
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ... import cache as _package_marker
from ...kernels import cpu
from ...kernels.internals import constant_results, graph_pickling, inductor, traces
from ...kernels.internals.dynamo_graphs import source_of
from ...kernels.internals.graph_pickling import NotPicklable
from ...kernels.internals.guarded_values import Outline, outline_of
from ...kernels.internals.traces import Bytecode, Frame, Guards, NotKept, Restored, Tree
from ...kernels.triton import support
from . import store
from .fingerprints import Unknown, code_digest, fingerprint
from .work import attach

log = logging.getLogger(__name__)

_REASONS = (NotKept, NotPicklable, Unknown)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What is kept of a frame.

    Attributes:
        files: source files whose code Dynamo ran, each with a hash of its content.
        functions: functions whose code Dynamo ran: module, qualified name, hash of the code.
        outline: the kinds of the values that are guarded.
        bytecode: what Dynamo runs in place of the frame's code.
        guards: the guards, pickled and compressed.
        checks: a hash of all that the guards check.
        graph: the captured graph and what passes made of it, compressed.
        constants: calls of functions whose results Dynamo took for constants, with the results.
        conditions: the conditions on sizes after it was compiled.
    """

    files: dict[str, str]
    functions: list[tuple[str, str, str]]
    outline: Outline
    bytecode: Bytecode
    guards: bytes
    checks: str
    graph: bytes
    constants: list[constant_results.Call]
    conditions: traces.Conditions


class TraceKeeper:
    """Keeps traces of what ``backend`` compiles, see :class:`traces.Keeper`. Dynamo compiles one frame at a time.

    Attributes:
        restored: how many graphs were not traced.
    """

    def __init__(self, backend: Any) -> None:
        self.restored = 0
        self._backend = backend
        self._captured: list[bytes | None] | None = None
        self._constants = constant_results.Calls()

    def install(self) -> None:
        """Take part in Dynamo's compilations from now on."""
        traces.install(self, self._applies)

    def _applies(self, frame: Frame) -> bool:
        backend = frame.backend
        return getattr(backend, "compiler_fn", backend) is self._backend and why_off() is None

    # --- keeping

    @contextlib.contextmanager
    def recording(self, frame: Frame) -> Iterator[None]:
        """The context in which Dynamo traces a frame, and calls the backend with its graph."""
        self._captured = []
        try:
            with constant_results.noting() as self._constants:
                yield
        except BaseException:
            self._captured = None
            raise

    def captured(self, gm: GraphModule, example_inputs: list[Any], graphs: Sequence[GraphModule], work: Any) -> None:
        """Called by the backend with each graph, before it is compiled, and with what passes made of it."""
        if self._captured is None:
            return
        for more in ((graphs, work), ((), None)):  # passes may leave something that cannot be kept
            try:
                self._captured.append(graph_pickling.dump(gm, example_inputs, *more))
                return
            except Exception as error:  # both may hold anything; the graph can be compiled all the same
                log.debug("%s is not kept: %r", "a trace" if more[1] is None else "what passes made of a graph", error)
        self._captured.append(None)

    def keep(self, frame: Frame, output: Any, manager: Any, before: set[str]) -> None:
        """Keep what Dynamo has found, if another process could use it."""
        graphs, self._captured = self._captured, None
        constants, self._constants = self._constants, constant_results.Calls()
        if graphs is None or len(graphs) != 1 or graphs[0] is None:
            return
        try:
            if constants.problem is not None:
                raise NotKept(constants.problem)
            graph = output.tracer_output.output_graph
            guards = traces.guards_of(manager, graph)
            codes = traces.traced_code(output)
            trace = Trace(
                _files(codes),
                _functions(codes),
                outline_of(guards.guards, frame.locals),
                traces.bytecode_of(output, frame.globals, before),
                _packed(traces.dump_guards(guards)),
                _hash(traces.text_of(manager, fingerprint)),
                _packed(graphs[0]),
                constants.calls,
                traces.conditions_of(graph.shape_env),
            )
            if store.write(_key(frame), pickle.dumps(trace)):
                log.debug("kept the trace of %s", frame.code.co_name)
        except _REASONS as error:
            log.debug("a trace is not kept: %s", error)
        except Exception as error:  # Dynamo's sources and guards may hold anything; without a trace all works as ever
            log.debug("a trace is not kept: %r", error, exc_info=True)

    # --- restoring

    def restore(self, frame: Frame) -> Restored | None:
        """The result for a frame that was kept, compiled by the frame's backend; None if there is none."""
        try:
            key = _key(frame)
        except Exception as error:  # the values of a frame may be anything
            log.debug("no trace is looked for: %r", error)
            return None
        for file, data in store.read(key):
            try:
                found = self._restored(frame, pickle.loads(data))
                self.restored += 1
                store.used(file)
                return found
            except _REASONS as error:
                log.debug("a kept trace is not for this call: %s", error)
            except Exception as error:  # values that the guards name do not exist in this call, in whatever way
                log.debug("a kept trace is not for this call: %r", error)
        return None

    def _restored(self, frame: Frame, trace: Trace) -> Restored:
        for file, digest in trace.files.items():
            if _file_hash(file) != digest:
                raise NotKept(f"{file} has changed")
        for module, name, digest in trace.functions:
            if _code_hash(module, name) != digest:
                raise NotKept(f"{module}.{name} has changed")
        if (name := constant_results.changed(trace.constants)) is not None:
            raise NotKept(f"{name}, whose result is a constant, returns something else")
        if not trace.outline.fits(frame.locals):
            raise NotKept("its guards are on values of other kinds")
        for name, module in trace.bytecode.imports.items():
            frame.globals.setdefault(name, _module(module))
        guards: Guards = pickle.loads(zlib.decompress(trace.guards))
        if guards.builtins is not None:
            traces.install_builtins(guards.builtins, frame.globals)
        tree = Tree(frame.code, guards, frame.locals, frame.globals)
        try:
            return self._compiled(frame, trace, guards, tree)
        except BaseException:
            tree.release()
            raise

    def _compiled(self, frame: Frame, trace: Trace, guards: Guards, tree: Tree) -> Restored:
        if _hash(tree.text(fingerprint)) != trace.checks:
            raise NotKept("its guards check other values")
        gm, mode, contexts, work = graph_pickling.load(zlib.decompress(trace.graph))
        attach(gm, work)
        inputs = _inputs(gm, tree)
        pairs = [(value, context) for value, context in zip(inputs, contexts, strict=True) if context is not None]
        with traces.compiling_again(mode, pairs):
            compiled = frame.compiler(gm, inputs)
        if added := traces.added_conditions(mode.shape_env, trace.conditions):  # no kept guard checks them
            tree.require(added, mode.shape_env)
            log.debug("compiling a kept trace has added conditions on sizes, which are checked: %s", added)
        log.debug("restored the trace of %s", frame.code.co_name)
        return traces.restored(trace.bytecode, tree, guards, compiled, mode, frame.globals)


def _packed(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def _inputs(gm: torch.fx.GraphModule, tree: Tree) -> list[Any]:
    """Example inputs: tensors of this call, symbolic sizes of the graph, and caches without data."""
    found = []
    for node in gm.graph.find_nodes(op="placeholder"):
        value = node.meta["example_value"]
        if isinstance(value, torch.Tensor):
            value = tree.value(source_of(node))
        found.append(value)
    return found


# --- what a trace is kept by ------------------------------------------------------------------------------------------


def _key(frame: Frame) -> list[str]:
    """All that is known of a frame before its values are looked at closely."""
    return [
        _environment(),
        code_digest(frame.code),
        _hash_of(frame.backend),
        str(frame.one_graph),
        *_kinds(frame.locals),
    ]


def _hash_of(backend: Any) -> str:
    arguments = getattr(backend, "kwargs", {})
    text = repr(sorted((name, repr(value)) for name, value in arguments.items()))
    if " at 0x" in text:
        raise NotKept("the backend has arguments that are objects of this process")
    return text


@functools.cache
def _source() -> str:
    root = pathlib.Path(_package_marker.__file__).parent.parent
    from ... import kernels, passes

    digest = hashlib.sha256()
    for folder in (root, *map(pathlib.Path, (*kernels.__path__, *passes.__path__))):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


#: Environment variables that change how graphs are compiled.
_VARIABLES = ("INNERQ_KERNELS", "INNERQ_CPU_KERNELS", "INNERQ_LOWERING", "TRITON_INTERPRET")


@functools.cache
def _installed() -> str:
    """A hash of the packages that are installed and their versions. Libraries look for others, and do something else.

    Both are in the names of folders of metadata, which are found much faster than ``importlib.metadata`` reads them.
    """
    found: set[str] = set()
    for folder in sys.path:
        with contextlib.suppress(OSError):
            found.update(name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info")))
    return _hash("\n".join(sorted(found)))


def _environment() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    settings = [traces.dynamo_settings(), inductor.settings_hash()]
    variables = [f"{name}={os.environ.get(name)}" for name in _VARIABLES]
    kernels = f"C++ {cpu.available()}, Triton {support.installed()}"  # reports say which kernels serve an attention
    return "|".join([sys.version, torch.__version__, device, kernels, _source(), _installed(), *variables, *settings])


def _kinds(scope: dict[str, Any]) -> Iterator[str]:
    """The kinds of a frame's values, not their contents: so that few traces have the same key."""
    for name in sorted(scope):
        yield f"{name}={_kind(scope[name], 4)}"


def _kind(value: Any, depth: int) -> str:
    name = type(value).__qualname__
    if isinstance(value, torch.Tensor):
        return f"{name}({value.dtype},{value.dim()},{value.device.type},{value.requires_grad})"
    if isinstance(value, torch.nn.Module):
        return f"{name}({sum(1 for _ in value.modules())},{value.training})"
    if isinstance(value, (bool, type(None))):
        return repr(value)
    if depth == 0:
        return name
    if isinstance(value, (list, tuple)):
        kinds = [_kind(item, depth - 1) for item in value[:16]]
        return f"{name}({len(value)},{','.join(kinds)})"
    if isinstance(value, dict):
        kinds = [f"{key!r}:{_kind(value[key], depth - 1)}" for key in list(value)[:64] if isinstance(key, (str, int))]
        return f"{name}({','.join(kinds)})"
    if isinstance(value, (types.FunctionType, types.ModuleType, type)):
        return f"{name} {getattr(value, '__qualname__', value.__name__)}"
    held = getattr(value, "__dict__", None)
    return f"{name}{_kind(held, depth - 1)}" if isinstance(held, dict) and not callable(value) else name


# --- the code that Dynamo ran -----------------------------------------------------------------------------------------


_TORCH = os.path.dirname(torch.__file__) + os.sep


def _files(codes: list[types.CodeType]) -> dict[str, str]:
    names = {code.co_filename for code in codes}
    return {name: _file_hash(name) for name in sorted(names) if not name.startswith((_TORCH, "<"))}


@functools.lru_cache(maxsize=1024)
def _content_hash(file: str, stamp: tuple[int, int]) -> str:
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()


def _file_hash(file: str) -> str:
    try:
        found = os.stat(file)
        return _content_hash(file, (found.st_mtime_ns, found.st_size))
    except OSError:
        raise NotKept(f"the source {file} cannot be read") from None


def _functions(codes: list[types.CodeType]) -> list[tuple[str, str, str]]:
    """Those of the functions that can be found by their name."""
    modules = {getattr(module, "__file__", None): name for name, module in list(sys.modules.items())}
    found = set()
    for code in codes:
        module, name = modules.get(code.co_filename), getattr(code, "co_qualname", "<")
        if module is not None and "<" not in name and _code_hash(module, name) == code_digest(code):
            found.add((module, name, code_digest(code)))
    return sorted(found)


def _code_hash(module: str, name: str) -> str | None:
    """The hash of the code of a function, of the innermost one if decorators wrap it."""
    value: Any = _module(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    if isinstance(value, property):
        value = value.fget
    seen: set[int] = set()
    while id(value) not in seen and hasattr(value, "__wrapped__"):
        seen.add(id(value))
        value = value.__wrapped__
    code = getattr(value, "__code__", None)
    return code_digest(code) if isinstance(code, types.CodeType) else None


def _module(name: str) -> Any:
    """A module, imported if it is not yet, as Dynamo would import it.

    Raises:
        NotKept: if it cannot be.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotKept(f"{name} cannot be imported") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def why_off() -> str | None:
    """Why traces are neither kept nor restored in this process. None if they are."""
    if os.environ.get("INNERQ_TRACES") == "0":
        return "INNERQ_TRACES=0"
    if not inductor.caches_enabled():
        return "Inductor's caches on disk are off"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "the process is one of several"
    return None if traces.modules_are_guarded() else "modules are not guarded"
