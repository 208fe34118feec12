"""Options of ``torch.compile``: those of this package, and those of Inductor."""

from __future__ import annotations

from typing import Any

from ..config import InnerQConfig, field_names
from ..errors import InnerQError
from ..kernels.internals import inductor

#: Inductor's option that turns on its CUDA graphs, which mode "reduce-overhead" stands for.
CUDA_GRAPHS = "triton.cudagraphs"


def split_options(options: dict[str, Any] | None, mode: str | None = None) -> tuple[InnerQConfig, dict[str, Any]]:
    """Options of ``torch.compile`` as the config and the options that go to Inductor.

    Args:
        options: fields of :class:`InnerQConfig`, ``preset``, ``mode`` and Inductor's own options, in one dict.
        mode: a mode of ``torch.compile``, where ``options`` has none.

    Raises:
        InnerQError: for an unknown name, and for a value that is not allowed.
    """
    options = dict(options or {})
    mode = options.pop("mode", None) or mode
    own = {name: options.pop(name) for name in ("preset", *field_names()) if name in options}
    config = InnerQConfig.preset(own.pop("preset", "base"), **own)
    known = inductor.option_names()
    for name in options:
        if name.replace("-", "_") not in known:
            InnerQConfig.from_options({name: options[name]})  # raises: the name is nobody's
    return config, {**_mode_options(mode), **{name.replace("-", "_"): value for name, value in options.items()}}


def _mode_options(mode: str | None) -> dict[str, Any]:
    if mode is None or mode == "default":
        return {}
    modes = inductor.mode_options()
    if mode not in modes:
        raise InnerQError(f"mode={mode!r} is unknown: allowed are default, {', '.join(modes)}")
    return dict(modes[mode])


def without_cuda_graphs(options: dict[str, Any]) -> dict[str, Any]:
    """Options of Inductor under which it records nothing."""
    return {**options, CUDA_GRAPHS: False}
