"""The decorator: :func:`innerq`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from .compiler.backend import innerq_backend
from .compiler.options import split_options
from .config import InnerQConfig
from .errors import InnerQError
from .inspect.dump import install as install_dumps
from .integrations.device_maps import GRAPHS_PER_BREAK, limit_is_an_argument, trace_hooks
from .integrations.tensor_parallel import check_heads
from .kernels.internals import dynamo_calls

install_dumps()

#: Graphs of one code object that Dynamo keeps before it gives up and runs it as it stands. The code object is the same
#: for all models of transformers, a decorator's wrapper, and each of them needs a prefill and a decode graph for every
#: form of its inputs: one sequence or several, padded or not. Dynamo's own limit of 8 is soon reached, and the caches
#: of whatever comes then would be dense.
RECOMPILE_LIMIT = 64

#: The target of ``@innerq(...)``, which is called without one.
_LATER = object()


def innerq(
    target: Any = _LATER,
    /,
    config: InnerQConfig | None = None,
    *,
    preset: str | None = None,
    mode: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    **options: Any,
) -> Any:
    """Compile a decoder so that its key/value cache is quantized.

    Use it on a model instance, ``model = innerq(model)``, on a class, ``@innerq class Decoder(nn.Module)``, or on a
    function that runs a decoder, ``@innerq def step(...)``; bare, or with options: ``@innerq(preset="small")``.

    A model instance is compiled in place and returned, so that everything that calls it runs compiled, transformers'
    ``generate`` among it.

    Args:
        target: an ``nn.Module`` instance, an ``nn.Module`` class, or a function.
        config: an :class:`InnerQConfig`, instead of ``preset`` and fields.
        preset: name of a preset, ``"base"`` where nothing is given.
        mode: a mode of ``torch.compile``, such as ``"reduce-overhead"``.
        dynamic, fullgraph: as in ``torch.compile``.
        options: fields of :class:`InnerQConfig` and options of Inductor.

    Raises:
        InnerQError: for a wrong option, and for a model whose KV heads its ranks cannot share.
    """
    if config is not None and not isinstance(config, InnerQConfig):
        raise InnerQError(f"config={config!r} is not allowed: it has to be an InnerQConfig; name a preset with preset=")
    if config is not None and preset is not None:
        raise InnerQError(f"config and preset={preset!r} exclude one another: use config=InnerQConfig.preset(...)")
    if preset is not None:
        options["preset"] = preset
    if mode is not None:
        options["mode"] = mode
    if config is not None:
        own = {name for name in options if name in InnerQConfig.__dataclass_fields__}
        if own:
            raise InnerQError(f"config and {sorted(own)[0]} exclude one another: use dataclasses.replace(config, ...)")
        options = {**{name: getattr(config, name) for name in InnerQConfig.__dataclass_fields__}, **options}
    split_options(options)  # a wrong option fails here, not at the first call
    arguments = {"backend": innerq_backend, "options": options, "dynamic": dynamic, "fullgraph": fullgraph}
    arguments |= recompile_limit()
    return functools.partial(_apply, arguments=arguments) if target is _LATER else _apply(target, arguments)


def recompile_limit(breaks: int = 0) -> dict[str, int]:
    """The argument of ``torch.compile`` that sets :data:`RECOMPILE_LIMIT`; torch 2.11 has none.

    ``breaks``: modules of the model with a graph break of their own, which share the code of one wrapper.
    """
    limit = max(RECOMPILE_LIMIT, breaks * GRAPHS_PER_BREAK, dynamo_calls.recompile_limit())
    return {"recompile_limit": limit} if limit_is_an_argument() else {}


def _apply(target: Any, arguments: dict[str, Any]) -> Any:
    if isinstance(target, torch.nn.Module):
        check_heads(target)
        target.compile(**{**arguments, **recompile_limit(trace_hooks(target))})
        return target
    if inspect.isclass(target):
        if not issubclass(target, torch.nn.Module):
            raise InnerQError(f"{target!r} is not allowed: a class has to be a subclass of torch.nn.Module")
        return _compiled_class(target, arguments)
    if callable(target):
        return torch.compile(target, **arguments)
    raise InnerQError(f"{target!r} is not allowed: it has to be a module, a subclass of nn.Module, or a function")


def _compiled_class(cls: type, arguments: dict[str, Any]) -> type:
    """The same class, whose instances are compiled as soon as they are made."""
    original: Callable[..., None] = cls.__init__

    @functools.wraps(original)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is cls or dynamo_calls.compiled_call(self) is None:
            self.compile(**arguments)

    cls.__init__ = __init__
    return cls
