"""What Dynamo found out about a frame, to be kept and used again. See ``table/traces.py``. Imports Dynamo.

Dynamo compiles a frame in two steps: ``compile_frame`` runs the frame symbolically and hands a graph to the backend,
which gives bytecode and a list of guards; from these it builds the tree of checks that runs before every call. Here the
first step can be replaced: by bytecode and guards of an earlier process, whose graph is compiled by the same backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import io
import logging
import pickle
import re
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch._dynamo import bytecode_transformation, convert_frame
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.guards import (
    CheckFunctionManager,
    _get_closure_vars,
    convert_int_to_concrete_values,
    get_verbose_code_part,
)
from torch._dynamo.output_graph import OutputGraphCommon, OutputGraphGuardsState
from torch._dynamo.package import SerializedCode
from torch._dynamo.utils import counters
from torch._guards import Guard, GuardsSet, Source, TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, ShapeGuardPythonPrinter
from torch.utils._ordered_set import OrderedSet
from torch.utils._pytree import tree_map
from torch.utils._sympy.value_ranges import bound_sympy
from torch.utils.weak import TensorWeakRef

from ..collector import sparing_old_objects

#: Guards that state all that they check in what :func:`text_of` gives.
KNOWN_GUARDS = frozenset(
    (
        "AUTOGRAD_SAVED_TENSORS_HOOKS",
        "BOOL_MATCH",
        "BUILTIN_MATCH",
        "CLASS_MATCH",
        "CLOSURE_MATCH",
        "CONSTANT_MATCH",
        "DEFAULT_DEVICE",
        "DETERMINISTIC_ALGORITHMS",
        "DICT_CONTAINS",
        "DICT_KEYS_MATCH",
        "DICT_NOT_CONTAINS",
        "DUPLICATE_INPUT",
        "EMPTY_NN_MODULE_HOOKS_DICT",
        "EQUALS_MATCH",
        "FUNCTION_MATCH",
        "GLOBAL_STATE",
        "GRAD_MODE",
        "HASATTR",
        "ID_MATCH",
        "MAPPING_KEYS_CHECK",
        "MODULE_MATCH",
        "NONE_MATCH",
        "NOT_NONE_MATCH",
        "NOT_PRESENT_IN_GENERIC_DICT",
        "RANGE_ITERATOR_MATCH",
        "SEQUENCE_LENGTH",
        "SET_CONTAINS",
        "SET_NOT_CONTAINS",
        "SHAPE_ENV",
        "TENSOR_MATCH",
        "TENSOR_SUBCLASS_METADATA_MATCH",
        "TORCH_FUNCTION_STATE",
        "TUPLE_ITERATOR_LEN",
        "TYPE_MATCH",
    )
)


class NotKept(Exception):
    """A frame cannot be kept, or what was kept is not for this call."""


class _Manager(CheckFunctionManager):
    """The checks of a frame, with what they were built from, until :meth:`release`.

    Attributes:
        objects: the objects that are identified by their id, by that id.
        sorted_guards: the guards, in the order in which the checks were built.
        builder: what built them, and knows the values of the call.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.objects: dict[int, Any] = {}
        self.sorted_guards: list[Guard] = []
        self.builder: Any = None
        try:
            super().__init__(*args, **kwargs)
        except BaseException:  # the checks do not hold
            self.release()
            raise

    def id_ref(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.objects[id(obj)] = obj
        return super().id_ref(obj, *args, **kwargs)

    def build_guards(self, sorted_guards: list[Guard], *args: Any, **kwargs: Any) -> Any:
        self.sorted_guards = list(sorted_guards)
        with contextlib.ExitStack() as stack:
            for guard in sorted_guards:
                if guard.create_fn_name() == "SHAPE_ENV":
                    stack.enter_context(_conditions_are_saved(guard))
            result = super().build_guards(sorted_guards, *args, **kwargs)
        self.builder = result[0]
        return result

    def require(self, conditions: list[str]) -> None:
        """Let conditions on sizes be checked besides, behind all other checks: as Dynamo checks those that it has."""
        names = {**SYMPY_INTERP, **_get_closure_vars()}
        self.builder.add_python_lambda_leaf_guard_to_root(conditions, conditions, closure_vars=names)
        self.guard_manager.populate_diff_guard_manager()  # the copy that is checked if a program skips others

    def release(self) -> None:
        """Forget the values of the call. Objects that are guarded keep a manager alive for as long as they live."""
        self.objects, self.sorted_guards, self.builder, self.output_graph = {}, [], None, None
        self._weakrefs.clear()


@contextlib.contextmanager
def _conditions_are_saved(guard: Guard) -> Iterator[None]:
    """While this guard is built, conditions on sizes are left as code in ``shape_code_parts`` of the manager."""
    create: Any = guard.create_fn

    @functools.wraps(create)
    def saving(builder: Any, guard: Guard) -> Any:
        builder.save_guards = True
        try:
            return create(builder, guard)
        finally:
            builder.save_guards = False

    guard.create_fn = saving
    try:
        yield
    finally:
        guard.create_fn = create


@contextlib.contextmanager
def _remembering() -> Iterator[None]:
    """The checks that Dynamo builds in this context are a :class:`_Manager`."""
    original = convert_frame.CheckFunctionManager  # pyright: ignore[reportPrivateImportUsage]
    setattr(convert_frame, "CheckFunctionManager", _Manager)  # noqa: B010  (a class is assigned)
    try:
        yield
    finally:
        setattr(convert_frame, "CheckFunctionManager", original)  # noqa: B010


@dataclasses.dataclass(frozen=True)
class Guards:
    """The guards of a frame, without the values that they are checked with.

    Attributes:
        guards: what is guarded, and how.
        shapes: the conditions on sizes, as code.
        key_order: dicts whose order of keys is guarded.
        sizes: for tensors, the sizes and strides that are constants.
        device: the default device.
        builtins: the name of the builtins among the globals of the frame.
    """

    guards: list[Guard]
    shapes: Any
    key_order: Any
    sizes: dict[Any, Any]
    device: Any
    builtins: str | None


def guards_of(manager: _Manager, output_graph: Any) -> Guards:
    """The guards of a frame that Dynamo has just traced, whose checks are ``manager``.

    Raises:
        NotKept: if one of them says less than it checks.
    """
    state = output_graph.dump_guards_state()
    kinds = {guard.create_fn_name() for guard in state.guards}
    if kinds - KNOWN_GUARDS:
        raise NotKept(f"guards of unknown meaning: {sorted(kinds - KNOWN_GUARDS)}")
    if state.torch_function_mode_stack or state.functorch_layers or state.export:
        raise NotKept("the frame was traced inside of modes of torch")
    if any(type(guard).__name__ != "DuplicateInputs" for guard in state.aotautograd_guards):
        raise NotKept("AOTAutograd has added guards of unknown meaning")
    if {*map(id, manager.sorted_guards)} != {*map(id, state.guards)}:
        raise NotKept("guards were left out")
    guards = [Guard(guard.originating_source, _without_values(guard.create_fn)) for guard in manager.sorted_guards]
    sizes = tree_map(convert_int_to_concrete_values, state.input_source_to_sizes_strides)
    found = Guards(
        guards,
        manager.shape_code_parts,
        state.guard_on_key_order,
        sizes,
        state.current_device,
        state.name_of_builtins_dict_key_in_fglobals,
    )
    if state.aotautograd_guards:
        raise NotKept("AOTAutograd has found that inputs are the same tensor")
    return found


class _GuardPickler(pickle.Pickler):
    """A pickler that knows the fields of sources, of which guards have thousands."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Source):
            return NotImplemented
        cls = type(obj)
        return cls, tuple([getattr(obj, name) for name in _fields(cls)])


@functools.cache
def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls) if field.init)


def dump_guards(guards: Guards) -> bytes:
    """Guards as bytes, for ``pickle.loads``."""
    stream = io.BytesIO()
    _GuardPickler(stream, pickle.HIGHEST_PROTOCOL).dump(guards)
    return stream.getvalue()


def _without_values(create: Any) -> Any:
    if not isinstance(create, functools.partial):
        return create
    args = [_no_tensor(value) for value in create.args]
    return functools.partial(create.func, *args, **{name: _no_tensor(value) for name, value in create.keywords.items()})


def _no_tensor(value: Any) -> Any:
    return None if isinstance(value, (TensorWeakRef, weakref.ref)) else value


class Tree:
    """The tree of checks for a call: as Dynamo would build it if it had just traced the frame with these values.

    Attributes:
        manager: the checks; they hold for the values that they were built from.
    """

    def __init__(self, code: types.CodeType, guards: Guards, scope: dict[str, Any], globals_: dict[str, Any]) -> None:
        state = OutputGraphGuardsState(
            local_scope=scope,
            global_scope=globals_,
            torch_function_mode_stack=[],
            guard_on_key_order=guards.key_order,
            input_source_to_sizes_strides=guards.sizes,
            dual_level=-1,
            functorch_layers=[],
            current_device=guards.device,
            global_state_guard=_global_state(),
            _guards=GuardsSet(OrderedSet(guards.guards)),  # in the order in which the checks are built
            _aotautograd_guards=[],
            name_of_builtins_dict_key_in_fglobals=guards.builtins,
        )
        common = OutputGraphCommon(state)
        self._common = common
        self.manager = self._built(code, guards.shapes)
        self._shapes = guards.shapes
        self._scope = scope
        self._added: list[str] = []
        # Dynamo has checked these values, but without tensors in dicts that are as they were when the checks were built
        # from them: where it traces, their sizes are those of the tensors. Here they are those of an earlier call.
        try:
            self._check()
        except BaseException:
            self.release()
            raise

    def _built(self, code: types.CodeType, shapes: Any, *args: Any) -> _Manager:
        with _no_errors_of_guards():
            return _Manager(code, self._common, *args, shape_code_parts=shapes)

    def _check(self) -> None:
        result = self.manager.guard_manager.check_verbose(self._scope)
        if not result.result:
            raise NotKept(f"its guards do not hold: {result.verbose_code_parts}")

    def require(self, conditions: list[Any], shape_env: Any) -> None:
        """Let conditions on sizes be checked besides, in this call and in later ones.

        Args:
            conditions: expressions in symbols of ``shape_env``.
            shape_env: knows which sizes of which inputs the symbols are.

        Raises:
            NotKept: if one does not hold in this call, or is on something else than sizes of inputs.
        """
        sources = shape_env.var_to_sources
        printer = ShapeGuardPythonPrinter(sources, lambda source: source.name, sources)
        try:
            self._added = [printer.doprint(condition) for condition in conditions]
            self.manager.require(self._added)
        except (RuntimeError, SyntaxError) as error:  # no size of an input is the symbol, or it has no spelling
            raise NotKept(f"conditions on sizes cannot be checked: {error}") from None
        self._check()

    def value(self, source: Any) -> Any:
        """The value of a source in this call."""
        return self.manager.builder.get(source)

    def text(self, fingerprint: Callable[[Any], str]) -> str:
        """All that is checked, see :func:`text_of`."""
        return text_of(self.manager, fingerprint)

    def final(self, code: types.CodeType, cache_entries: Any, hooks: Any) -> _Manager:
        """The checks for Dynamo, with what a program has asked for about guards. Afterwards the tree is empty."""
        leave_out, failed = getattr(hooks, "guard_filter_fn", None), getattr(hooks, "guard_fail_fn", None)
        manager = self.manager
        if leave_out is not None:
            manager.release()
            manager = self._built(code, self._shapes, cache_entries, failed, leave_out)
            if self._added:
                manager.require(self._added)
        manager.guard_manager.guard_fail_fn = failed
        self.release()
        manager.release()
        return manager

    def release(self) -> None:
        """Forget the values of the call."""
        self.manager.release()
        self._common, self._scope = None, {}


def text_of(manager: _Manager, fingerprint: Callable[[Any], str]) -> str:
    """All that is checked, with fingerprints in place of ids: equal for calls that Dynamo would not tell apart.

    Raises:
        NotKept: if an object that is checked has no fingerprint.
    """
    text = _IN_THIS_PROCESS.sub("___check_metadata", str(manager.guard_manager))
    text = _with_sorted_sets(_without_places(text, manager), manager)

    def of(match: re.Match[str]) -> str:
        if int(match[2]) not in manager.objects:
            raise NotKept(f"a guard identifies an object that is not known: {match[0]}")
        return f"{match[1]}{fingerprint(manager.objects[int(match[2])])})"

    # guards that differ in nothing but their line of code are one when they have been kept
    return "\n".join([_ID.sub(of, text), *dict.fromkeys(_unspelled(manager))])


def _unspelled(manager: _Manager) -> Iterator[str]:
    """What a trace depends on and checks do not spell: metadata of tensor subclasses, numbers of hooks."""
    for guard in manager.sorted_guards:
        kind = guard.create_fn_name()
        if kind == "TENSOR_SUBCLASS_METADATA_MATCH":
            yield repr(manager.builder.get(guard.originating_source).__tensor_flatten__()[1])
        elif kind == "EMPTY_NN_MODULE_HOOKS_DICT":  # by default not checked in later calls, but seen by a trace
            yield f"{guard.name}: {len(manager.builder.get(guard.originating_source))}"


def _without_places(text: str, manager: _Manager) -> str:
    """The text of checks without the lines of code that guards are from: guards that were kept have none."""
    stacks = {(id(guard.user_stack), id(guard.stack)): guard for guard in manager.sorted_guards}
    places = {get_verbose_code_part("", guard)[_WIDTH_OF_CODE:] for guard in stacks.values()} - {""}
    if not places:
        return text
    shapes = manager.shape_code_parts
    conditions = set() if shapes is None else {*shapes.verbose_code_parts.exprs}  # kept with their lines of code

    def without(line: str) -> str:
        if line.partition(": ")[2] in conditions:
            return line
        start = line.find(_COMMENT)
        while start >= 0:
            place, hint, rest = line[start:].partition(" (HINT: ")
            if place in places:
                return line[:start] + hint + rest
            start = line.find(_COMMENT, start + 1)
        return line

    return "\n".join([without(line) if _COMMENT in line else line for line in text.split("\n")])


def _with_sorted_sets(text: str, manager: _Manager) -> str:
    """The text of checks with the items of sets in an order that does not depend on the process.

    A guard compares sets, and equal sets of strings are spelled in as many ways as their strings have hashes.
    """
    spelled: dict[str, str] = {}
    for guard in manager.sorted_guards if "{" in text else ():
        if guard.create_fn_name() in _EQUALITIES:
            value = manager.builder.get(guard.originating_source)
            if type(value) in (set, frozenset, tuple, list):
                spelled[repr(value)] = _spelled(value)
    for before, now in spelled.items():
        if before != now:
            text = text.replace(f" == {before}", f" == {now}")
    return text


def _spelled(value: Any) -> str:
    """As ``repr``, but that equal sets are spelled the same."""
    kind = type(value)
    if kind in (set, frozenset):
        return f"{kind.__name__}({', '.join(sorted(map(_spelled, value)))})"
    if kind in (tuple, list):
        return f"{kind.__name__}({', '.join(map(_spelled, value))})"
    return repr(value)


#: Guards that state the whole value that they compare with.
_EQUALITIES = frozenset(("CONSTANT_MATCH", "EQUALS_MATCH"))
#: The width to which Dynamo fills up the code of a check, and what stands before the place that it is from.
_WIDTH_OF_CODE, _COMMENT = 60, "  # "
#: An id in the text of a check, and the object that some versions print behind it, with its address.
_ID = re.compile(r"(___check_(?:obj|type)_id\(.*?, )(\d{6,})\)(, type=<[^>\n]*>)?")
_IN_THIS_PROCESS = re.compile(r"___check_metadata_\d+_c\d+(/\d+)*(_\d+)?")


@contextlib.contextmanager
def _no_errors_of_guards() -> Iterator[None]:
    """A guard that cannot be built is no error here, but a trace that is not for this call."""
    thread = threading.get_ident()
    loggers = [logging.getLogger(name) for name in ("torch._guards", "torch._dynamo.guards")]

    def quiet(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for logger in loggers:
        logger.addFilter(quiet)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(quiet)


def _global_state() -> Any:
    return torch._C._dynamo.guards.GlobalStateGuard()  # pyright: ignore[reportAttributeAccessIssue]


# --- a kept frame -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bytecode:
    """The code that Dynamo runs in place of a frame's.

    Attributes:
        code: it.
        compiled: the name of the global that is the compiled graph.
        imports: globals that are modules.
        globals: the other globals that it uses, which the module of the frame has, or builtins.
    """

    code: Any
    compiled: str
    imports: dict[str, str]
    globals: list[str]


def bytecode_of(output: Any, module_globals: dict[str, Any], before: set[str]) -> Bytecode:
    """The bytecode of a frame that Dynamo has just traced.

    Raises:
        NotKept: if the graph was broken, or the code refers to objects that Dynamo has made.
    """
    code, graph = output.bytecode, output.tracer_output.output_graph
    names = set(_globals_of(code))
    compiled = [name for name in names if name.startswith("__compiled_fn")]
    imports = dict(graph.import_sources)
    for name in names - set(compiled) - set(imports) - before:
        value = module_globals.get(name)
        if isinstance(value, types.ModuleType):
            imports[name] = value.__name__
        elif name in module_globals:
            raise NotKept(f"the bytecode refers to an object of this process: {name}")
    if len(compiled) != 1:
        raise NotKept("the graph is broken, or there is none")
    others = sorted(names - set(compiled) - set(imports))
    return Bytecode(SerializedCode.from_code_object(code), compiled[0], imports, others)


def _globals_of(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


class _OutputGraph:
    """Stands in the place of Dynamo's output graph behind ``compile_frame``: only for logs and statistics."""

    def __init__(self, guards: Guards, mode: FakeTensorMode, cleanups: list[Any]) -> None:
        self.guards, self.shape_env, self.cleanups = guards.guards, mode.shape_env, cleanups
        self.graph, self.placeholders, self.tracked_fakes, self.local_scope = Graph(), [], [], {}
        self.non_compliant_ops, self.compliant_custom_ops = set(), set()
        self.export = self.package = self.root_tx = None
        self.tracing_context = TracingContext(mode)
        self.current_tracer = self

    def is_empty_graph(self) -> bool:
        return False

    def has_outputs(self) -> bool:
        return False

    def count_calls(self) -> int:
        return 0

    def get_graph_sizes_structured(self) -> dict[str, Any]:
        return {}

    def get_replayed_side_effect_source_refs(self) -> list[Any]:
        return []


class _TracerOutput:
    def __init__(self, output_graph: _OutputGraph) -> None:
        self.output_graph = self.output_graph_for_cleanup = output_graph
        self.error_on_graph_break = False
        self.is_tracing_resume_prologue = False

    def _cleanup_output_graph(self) -> None:
        pass


class Restored:
    """What ``compile_frame`` returns for a kept frame."""

    def __init__(self, bytecode: types.CodeType, tree: Tree, output_graph: _OutputGraph) -> None:
        self.bytecode, self.pycode, self.last_attempt_start_time = bytecode, [], None
        self.tracer_output = _TracerOutput(output_graph)
        self._tree: Tree | None = tree

    def build_guards(
        self, code: types.CodeType, hooks: Any = None, save: bool = False, cache_entries: Any = None, **options: Any
    ) -> Any:
        """The checks, once."""
        tree, self._tree = self._tree, None
        assert tree is not None
        return tree.final(code, cache_entries, hooks)


@contextlib.contextmanager
def compiling_again(mode: FakeTensorMode, contexts: list[tuple[Any, Any]]) -> Iterator[None]:
    """The context of a backend that compiles a kept graph: as inside of Dynamo.

    Args:
        mode: the fake mode of the graph.
        contexts: tensors among the inputs, each with its symbolic context.
    """
    context = TracingContext(FakeTensorMode(shape_env=mode.shape_env))
    for tensor, symbolic in contexts:
        context.tensor_to_context[tensor] = symbolic
    with tracing(context):
        yield


def restored(
    bytecode: Bytecode, tree: Tree, guards: Guards, compiled: Any, mode: FakeTensorMode, globals_: dict[str, Any]
) -> Restored:
    """What ``compile_frame`` returns for a kept frame whose graph was compiled again."""
    import importlib

    code = SerializedCode.to_code_object(bytecode.code)
    for name, module in bytecode.imports.items():
        globals_[name] = importlib.import_module(module)
    # a name of its own: code of this process that was compiled under the name, and deleted it, may still live
    name = bytecode_transformation.unique_id("__compiled_fn", with_uuid=True)
    code = code.replace(co_names=tuple(name if other == bytecode.compiled else other for other in code.co_names))
    globals_[name] = torch._dynamo.disable(compiled, reason="do not trace Dynamo-compiled graph")
    counters["stats"]["unique_graphs"] += 1
    cleanups = [functools.partial(globals_.pop, name, None)]
    return Restored(code, tree, _OutputGraph(guards, mode, cleanups))


# --- the place in Dynamo ----------------------------------------------------------------------------------------------


class Keeper(Protocol):
    """Takes part in the compilation of frames, see :func:`install`."""

    def restore(self, frame: Frame) -> Restored | None:
        """The result for a frame that was kept, or None."""
        ...

    def recording(self, frame: Frame) -> contextlib.AbstractContextManager[Any]:
        """The context in which Dynamo traces a frame."""
        ...

    def keep(self, frame: Frame, output: Any, manager: Any, before: set[str]) -> None:
        """Keep what Dynamo has found. ``before``: the globals of the frame's module before."""
        ...


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame that is to be compiled."""

    code: types.CodeType
    globals: dict[str, Any]
    locals: dict[str, Any]
    compiler: Any
    one_graph: bool

    @property
    def backend(self) -> Any:
        """The backend's function and its arguments: ``torch.compile(backend=...)`` with ``mode`` and ``options``."""
        return innermost_backend(self.compiler)


def install(keeper: Keeper, applies: Callable[[Frame], bool]) -> None:
    """Let ``keeper`` take part in the compilation of each frame for which ``applies`` is true."""
    original: Any = convert_frame.compile_frame
    if getattr(original, "_innerq", False):
        return

    @functools.wraps(original)
    def compile_frame(
        code: Any, globals: Any, locals: Any, builtins: Any, closure: Any, compiler_fn: Any, one_graph: Any, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        frame = Frame(code, globals, locals, compiler_fn, bool(one_graph))
        given = (code, globals, locals, builtins, closure, compiler_fn, one_graph, *args)
        if kwargs.get("export") or kwargs.get("package") is not None or not applies(frame):
            return original(*given, **kwargs)
        with sparing_old_objects():
            found = keeper.restore(frame)
            if found is not None:
                return found
            before = set(globals)
            with keeper.recording(frame):
                output = original(*given, **kwargs)
        build = output.build_guards

        def build_guards(code: Any, hooks: Any = None, *arguments: Any, **options: Any) -> Any:
            with sparing_old_objects():
                with _remembering():
                    manager = build(code, hooks, *arguments, **options)
                if isinstance(manager, _Manager):
                    keeper.keep(frame, output, manager, before)
                    manager.release()
            return manager

        output.build_guards = build_guards
        return output

    setattr(compile_frame, "_innerq", True)  # noqa: B010  (functions declare no such attribute)
    convert_frame.compile_frame = compile_frame


def traced_code(output: Any) -> list[types.CodeType]:
    """The code objects that Dynamo ran symbolically."""
    return list(output.tracer_output.output_graph.tracing_context.traced_code)


def modules_are_guarded() -> bool:
    """Whether Dynamo guards on what it reads of modules, which is its default."""
    from torch._dynamo import config

    return bool(config.guard_nn_modules)


def dynamo_settings() -> str:
    """Those of Dynamo's settings that are constants or collections of constants."""
    from torch._dynamo import config

    values = {name: _plain(value) for name, value in config.get_config_copy().items()}
    return repr(sorted((name, value) for name, value in values.items() if value is not None))


def _plain(value: Any) -> str | None:
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        return None if None in items else f"{type(value).__name__} {sorted(map(str, items))}"
    return None


def install_builtins(name: str, globals_: dict[str, Any]) -> None:
    """Give the builtins the name by which guards know them. Dynamo will not use that name for another frame."""
    if name not in globals_:
        found = globals_["__builtins__"]
        globals_[name] = found if isinstance(found, dict) else vars(found)
        number = int(name.rpartition("_")[2])
        while next(bytecode_transformation._unique_id_counter) < number:
            pass


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions on sizes that a graph has: those that guards check, once guards were built.

    Attributes:
        texts: conditions that were added one by one. Symbols have the same names where the graph is restored.
        ranges: of each symbol, the least and the greatest value.
    """

    texts: frozenset[str]
    ranges: dict[Any, Any]


def conditions_of(shape_env: Any) -> Conditions:
    """The conditions on sizes that a graph has by now."""
    found = [guard.expr for guard in shape_env.guards]
    return Conditions(frozenset([*map(str, found), *map(_canonical, found)]), dict(shape_env.var_to_range))


def added_conditions(shape_env: Any, known: Conditions) -> list[Any]:
    """Conditions that a graph has by now and that do not follow from ``known``, in an order of their own.

    Caches of compiled code spell the same condition in another way than the compiler, or add what a range says.
    """
    return sorted({guard.expr for guard in shape_env.guards if not _follows(guard.expr, known)}, key=str)


def _follows(condition: Any, known: Conditions) -> bool:
    if str(condition) in known.texts or _canonical(condition) in known.texts:
        return True
    if any(symbol not in known.ranges for symbol in condition.free_symbols):
        return False
    found: Any = bound_sympy(condition, known.ranges)
    return bool(found.is_singleton()) and bool(found.lower)


def _canonical(condition: Any) -> str:
    return str(getattr(condition, "canonical", condition))
