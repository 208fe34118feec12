"""Splits the options of ``torch.compile`` into those of this package and those of Inductor."""

from __future__ import annotations

from typing import Any

from ..config import InnerQConfig, field_names
from ..errors import InnerQError
from ..kernels.internals import inductor

#: Inductor's option for CUDA graphs, which mode "reduce-overhead" sets.
CUDA_GRAPHS = "triton.cudagraphs"


def split_options(options: dict[str, Any] | None, mode: str | None = None) -> tuple[InnerQConfig, dict[str, Any]]:
    """The config, and the options to pass on to Inductor.

    Args:
        options: fields of :class:`InnerQConfig`, ``preset``, ``mode`` and options of Inductor, in one dict.
        mode: a mode of ``torch.compile``; ``mode`` in ``options`` takes precedence.

    Raises:
        InnerQError: if a name is unknown or a value is not allowed.
    """
    options = dict(options or {})
    mode = options.pop("mode", None) or mode
    own = {name: options.pop(name) for name in ("preset", *field_names()) if name in options}
    config = InnerQConfig.preset(own.pop("preset", "base"), **own)
    known = inductor.option_names()
    for name in options:
        if name.replace("-", "_") not in known:
            InnerQConfig.from_options({name: options[name]})  # raises, because the name is unknown
    return config, {**_mode_options(mode), **{name.replace("-", "_"): value for name, value in options.items()}}


def _mode_options(mode: str | None) -> dict[str, Any]:
    if mode is None or mode == "default":
        return {}
    modes = inductor.mode_options()
    if mode not in modes:
        raise InnerQError(f"mode={mode!r} is unknown: allowed are default, {', '.join(modes)}")
    return dict(modes[mode])


def without_cuda_graphs(options: dict[str, Any]) -> dict[str, Any]:
    """These options of Inductor with CUDA graphs turned off."""
    return {**options, CUDA_GRAPHS: False}
