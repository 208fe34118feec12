"""Splits the options of ``torch.compile`` into those of this package and those of Inductor."""

from __future__ import annotations

import enum
from typing import Any

from ..config import InnerQConfig, field_names
from ..errors import InnerQError
from ..kernels.internals import inductor

#: Inductor's option for CUDA graphs, which modes such as "reduce-overhead" set.
CUDA_GRAPHS = "triton.cudagraphs"

#: The end of the names of modes that exclude CUDA graphs, such as "max-autotune-no-cudagraphs".
_NO_CUDA_GRAPHS = "no-cudagraphs"


class GraphRequest(enum.Enum):
    """What the options say of CUDA graphs.

    Attributes:
        OFF: There are none.
        DEFAULT: Nothing. Decode steps that can be recorded are, by ``runtime/recordings.py``. All other graphs run as
            plain ``torch.compile`` runs them: Inductor's CUDA graphs overwrite results, which a program has to allow.
        ASKED: What ``runtime/recordings.py`` cannot record is left to Inductor.
    """

    OFF = enum.auto()
    DEFAULT = enum.auto()
    ASKED = enum.auto()

    @staticmethod
    def of(config: InnerQConfig, inductor_options: dict[str, Any]) -> GraphRequest:
        """The request that a config and the options of Inductor make, both as :func:`split_options` returns them."""
        if not config.cuda_graphs or not inductor_options.get(CUDA_GRAPHS, True):
            return GraphRequest.OFF
        asked = CUDA_GRAPHS in inductor_options or inductor.uses_cuda_graphs()
        return GraphRequest.ASKED if asked else GraphRequest.DEFAULT


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
    return {CUDA_GRAPHS: False} | modes[mode] if mode.endswith(_NO_CUDA_GRAPHS) else dict(modes[mode])


def without_cuda_graphs(options: dict[str, Any]) -> dict[str, Any]:
    """These options of Inductor with CUDA graphs turned off."""
    return {**options, CUDA_GRAPHS: False}
