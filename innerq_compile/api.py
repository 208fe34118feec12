"""The entry point :func:`innerq`: compiles a model, class or function with the backend."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from .compiler.backend import innerq_backend
from .compiler.options import split_options
from .compiler.traces import install as install_traces
from .config import InnerQConfig
from .errors import InnerQError
from .inspect.dump import install as install_dumps
from .integrations.copies import compile_module
from .integrations.device_maps import trace_hooks
from .integrations.generate import called_by_generate
from .integrations.tensor_parallel import check_heads
from .kernels.internals import dynamo_calls, inductor

install_dumps()
install_traces(innerq_backend)

#: Default of ``target``: innerq was called as ``@innerq(...)``, and the target follows in a second call.
_NO_TARGET = object()


def innerq(
    target: Any = _NO_TARGET,
    /,
    config: InnerQConfig | None = None,
    *,
    preset: str | None = None,
    mode: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    **options: Any,
) -> Any:
    """Compile a decoder with ``torch.compile`` so that its KV cache is quantized.

    A model instance is compiled in place and returned; everything that calls it, transformers' ``generate`` included,
    then runs compiled. Of a wrapper around a model of transformers, as PEFT makes it, both are compiled. A class is
    changed in place, and its instances are compiled when they are created. A function is wrapped as ``torch.compile``
    does it.

    On a CUDA device decode steps are recorded as CUDA graphs and replayed. ``cuda_graphs=False`` turns that off.

    Args:
        target: An ``nn.Module`` instance, an ``nn.Module`` subclass, or a function that runs a decoder. Without it,
            ``innerq(...)`` returns a decorator, as in ``@innerq(preset="small")``.
        config: An :class:`InnerQConfig`. Excludes ``preset`` and config fields among ``options``.
        preset: Name of a preset, see :data:`PRESETS`; ``"base"`` by default.
        mode: A mode of ``torch.compile``, such as ``"max-autotune"``.
        dynamic: As in ``torch.compile``, but by default sizes that count sequences or tokens are symbols from the first
            call on. With False each length of a prompt and each batch size is compiled for itself.
        fullgraph: As in ``torch.compile``.
        **options: Fields of :class:`InnerQConfig` and options of Inductor.

    Returns:
        The model itself, the class itself, the compiled function, or a decorator if ``target`` was left out.

    Raises:
        InnerQError: If an option is unknown or has a value that is not allowed, if ``target`` cannot be compiled, or if
            the KV heads of a tensor-parallel model cannot be divided among its ranks.

    Example:
        >>> model = innerq(model, preset="small", recent=128)
        >>> model.generate(**inputs, max_new_tokens=100)

        >>> @innerq
        ... def step(tokens, cache): ...
    """
    if config is not None and not isinstance(config, InnerQConfig):
        raise InnerQError(
            f"config={config!r} is not allowed: it has to be an InnerQConfig; to name a preset, use preset="
        )
    if config is not None and preset is not None:
        raise InnerQError(f"config and preset={preset!r} exclude each other: use config=InnerQConfig.preset(...)")
    if preset is not None:
        options["preset"] = preset
    if mode is not None:
        options["mode"] = mode
    if config is not None:
        own = {name for name in options if name in InnerQConfig.__dataclass_fields__}
        if own:
            raise InnerQError(f"config and {sorted(own)[0]} exclude each other: use dataclasses.replace(config, ...)")
        options = {**{name: getattr(config, name) for name in InnerQConfig.__dataclass_fields__}, **options}
    split_options(options)  # so that a wrong option raises here, not at the first call of the model
    arguments = {"backend": innerq_backend, "options": options, "dynamic": dynamic, "fullgraph": fullgraph}
    return functools.partial(_apply, arguments=arguments) if target is _NO_TARGET else _apply(target, arguments)


def graphs_of_its_own(module: torch.nn.Module) -> dict[str, bool]:
    """The keyword argument of ``torch.compile`` by which a part of a model finds its graphs among its own only.

    Each layer of a model needs graphs of its own, because it has its place in the cache, and all have one code object:
    a call would try those of all layers in turn. Whole models, those that can ``generate``, share graphs with models
    alike. Empty for versions of torch that have no such argument, before 2.13.
    """
    known = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    return {"isolate_recompiles": True} if known and not hasattr(module, "generate") else {}


def _apply(target: Any, arguments: dict[str, Any]) -> Any:
    if isinstance(target, torch.nn.Module):
        check_heads(target)
        if any(parameter.is_cuda for parameter in target.parameters()):
            inductor.start_workers()  # now, so that they are ready when Dynamo has traced the model
        trace_hooks(target)
        inner = [module for module in called_by_generate(target) if dynamo_calls.compiled_call(module) is None]
        for module in dict.fromkeys((target, *inner)):  # an inner one that is compiled already has options of its own
            compile_module(module, {**arguments, **graphs_of_its_own(module)})
        return target
    if inspect.isclass(target):
        if not issubclass(target, torch.nn.Module):
            raise InnerQError(f"{target!r} is not allowed: a class has to be a subclass of torch.nn.Module")
        return _compiled_class(target, arguments)
    if callable(target):
        return torch.compile(target, **arguments)
    raise InnerQError(f"{target!r} is not allowed: it has to be an nn.Module, a subclass of it, or a function")


def _compiled_class(cls: type, arguments: dict[str, Any]) -> type:
    """Patch ``cls.__init__`` so that instances compile themselves when they are created. Returns ``cls``."""
    original: Callable[..., None] = cls.__init__

    @functools.wraps(original)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is cls or dynamo_calls.compiled_call(self) is None:
            compile_module(self, arguments)

    cls.__init__ = __init__
    return cls
