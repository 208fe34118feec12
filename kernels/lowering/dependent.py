"""Programmatic dependent launch of the templates, where Inductor's own kernels use it (``triton/dependent.py``)."""

from __future__ import annotations

from typing import Any

import torch

from ..internals.templates import config
from ..triton import dependent


def launch_options(device: torch.device) -> dict[str, Any]:
    """Options of a template's choice, with its constant ``PDL``: True with Inductor's option ``triton.enable_pdl``.

    It gains time only if the kernels before and after use it as well.
    """
    if config.triton.enable_pdl and dependent.supported(device):
        return {"PDL": True, "triton_meta": {"launch_pdl": True}}
    return {"PDL": False}
