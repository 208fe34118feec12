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
import re
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch._dynamo import bytecode_transformation, convert_frame
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.guards import CheckFunctionManager, convert_int_to_concrete_values
from torch._dynamo.output_graph import OutputGraphCommon, OutputGraphGuardsState
from torch._dynamo.package import SerializedCode
from torch._dynamo.utils import counters
from torch._guards import Guard, GuardsSet, TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph
from torch.utils._ordered_set import OrderedSet
from torch.utils._pytree import tree_map
from torch.utils.weak import TensorWeakRef

#: Guards that state in their text all that they check, with :attr:`Tree.objects` and :attr:`Tree.unspelled`.
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
    """The checks of a frame, built from the values of a call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.objects: dict[int, Any] = {}
        self.sorted_guards: list[Guard] = []
        super().__init__(*args, **kwargs)

    def id_ref(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.objects[id(obj)] = obj
        return super().id_ref(obj, *args, **kwargs)

    def build_guards(self, *args: Any, **kwargs: Any) -> Any:
        result = super().build_guards(*args, **kwargs)
        self.builder = result[0]
        return result

    def serialize_guards(self, builder: Any, sorted_guards: list[Guard], output_graph: Any) -> bytes:
        self.sorted_guards = sorted_guards
        return b""


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


def guards_of(code: types.CodeType, output_graph: Any) -> Guards:
    """The guards of a frame that Dynamo has just traced.

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
    manager = _Manager(code, output_graph, save_guards=True)
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
        objects: the objects that are identified by their id, by that id.
        unspelled: what a trace depends on and checks do not spell: metadata of tensor subclasses, numbers of hooks.
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
        self.manager = _Manager(code, common, shape_code_parts=guards.shapes)
        self.objects = self.manager.objects
        self.unspelled = []
        for guard in guards.guards:
            kind = guard.create_fn_name()
            if kind == "TENSOR_SUBCLASS_METADATA_MATCH":
                self.unspelled.append(repr(self.value(guard.originating_source).__tensor_flatten__()[1]))
            elif kind == "EMPTY_NN_MODULE_HOOKS_DICT":  # by default not checked in later calls, but seen by a trace
                self.unspelled.append(f"{guard.name}: {len(self.value(guard.originating_source))}")

    def value(self, source: Any) -> Any:
        """The value of a source in this call."""
        return self.manager.builder.get(source)

    def text(self, fingerprint: Callable[[Any], str]) -> str:
        """All that is checked, with fingerprints in place of ids: equal for calls that Dynamo would not tell apart.

        Raises:
            NotKept: if an object that is checked has no fingerprint.
        """
        text = _IN_THIS_PROCESS.sub("___check_metadata", str(self.manager.guard_manager))

        def of(match: re.Match[str]) -> str:
            if int(match[2]) not in self.objects:
                raise NotKept(f"a guard identifies an object that is not known: {match[0]}")
            return f"{match[1]}{fingerprint(self.objects[int(match[2])])})"

        return "\n".join([_ID.sub(of, text), *self.unspelled])


#: An id in the text of a check, and the object that some versions print behind it, with its address.
_ID = re.compile(r"(___check_(?:obj|type)_id\(.*?, )(\d{6,})\)(, type=<[^>\n]*>)?")
_IN_THIS_PROCESS = re.compile(r"___check_metadata_\d+_c\d+(/\d+)*(_\d+)?")


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
        self.graph, self.placeholders, self.local_scope = Graph(), [], {}
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
        self._manager = tree.manager

    def build_guards(self, *args: Any, **kwargs: Any) -> Any:
        return self._manager


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
        found = keeper.restore(frame)
        if found is not None:
            return found
        before = set(globals)
        with keeper.recording(frame):
            output = original(*given, **kwargs)
        build = output.build_guards

        def build_guards(*arguments: Any, **options: Any) -> Any:
            manager = build(*arguments, **options)
            keeper.keep(frame, output, manager, before)
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


def new_symbols(mode: Any) -> int:
    """How many conditions on sizes a graph has by now."""
    return len(mode.shape_env.guards)
