"""The source line and module that a node was traced from, for messages and reports."""

from __future__ import annotations

import os
import re

import torch
from torch.fx import Node

_TORCH = os.path.dirname(torch.__file__) + os.sep

#: Dynamo's name for the model: ``self`` of the outermost traced frame, or the first argument of a decorator's wrapper
#: around ``forward`` (transformers 5.24 has one).
_MODEL = re.compile(r"^L\['self'\]|^L\['args'\]\[0\]")


def source_line(node: Node) -> str:
    """The line of the user's program, as ``File "...", line N, in f: code``; an empty string if it is not known."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    frames = [index for index, line in enumerate(lines) if line.startswith("File ")]
    own = [index for index in frames if _TORCH not in lines[index]] or frames  # prefer frames outside of torch
    if not own:
        return ""
    index = own[-1]
    code = lines[index + 1] if index + 1 < len(lines) else ""
    return f"{lines[index]}: {code}" if code else lines[index]


def module_path(node: Node) -> str:
    """The module that a node was traced from, as ``model.layers.0.self_attn``; an empty string if it is not known."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", _MODEL.sub("", path))
    return ".".join(part for part in path.split(".") if part not in ("", "_modules"))
