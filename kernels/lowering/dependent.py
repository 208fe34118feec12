"""Programmatic dependent launch of the templates, where Inductor's own kernels have it (``triton/dependent.py``)."""

from __future__ import annotations

from typing import Any

import torch

from ..internals.templates import config
from ..triton import dependent


def launch_options(device: torch.device) -> dict[str, Any]:
    """Options of a template's choice, and its constant ``PDL``: on where ``triton.enable_pdl`` asks for it.

    One kind of kernel alone gains nothing.
    """
    if config.triton.enable_pdl and dependent.supported(device):
        return {"PDL": True, "triton_meta": {"launch_pdl": True}}
    return {"PDL": False}
