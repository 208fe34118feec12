"""What ``format_search.py`` and ``fidelity.py`` share: options, model and documents, and the figures of a format."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

import torch

from .decode import Emulation, Format, measure
from .documents import SOURCES, TOKENS, documents
from .packed import load_packed

#: Documents that no format was chosen on.
HELD_OUT = frozenset(list(SOURCES)[len(SOURCES) // 2 :])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="what pack_model.py wrote; without it, the installed demo model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--documents", type=int, default=len(SOURCES), help="the first N of them")
    parser.add_argument("--batch", type=int, default=12, help="documents that go through the model together")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each document; the first half is prefilled")
    parser.add_argument("--json", type=Path, help="file for all figures, by document too")


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model and documents, and what full precision gives on them.

    Attributes:
        title: name of the model in tables.
        nll_full: mean negative log-likelihood of each document in full precision.
    """

    title: str
    model: torch.nn.Module
    tokenizer: object | None
    names: list[str]
    sets: list[Emulation]
    nll_full: list[float]

    @staticmethod
    def load(args: argparse.Namespace) -> Bench:
        tokenizer = None
        if args.data:
            data = torch.load(args.data / "documents.pt", weights_only=True)
            names, tokens = data["names"], data["tokens"].long()
            title = data.get("model", args.data.resolve().name)
            model = load_packed(args.data, args.device)
        else:
            from .models import MODELS, load

            model, tokenizer = load("smollm2")
            names, tokens = documents(tokenizer)
            title = MODELS["smollm2"]
            model = model.to(args.device)
        if not (args.documents > 0 and args.batch > 0 and 0 < args.tokens <= tokens.shape[1]):
            raise SystemExit(
                f"--documents {args.documents} --batch {args.batch} --tokens {args.tokens} do not fit: there are "
                f"{len(names)} documents of {tokens.shape[1]} tokens, and at least 1 of each is needed"
            )
        tokens = tokens[: args.documents, : args.tokens].to(args.device)
        prompt = args.tokens // 2
        sets = [Emulation(model, part, prompt) for part in tokens.split(args.batch)]
        nll = [-s.reference[:, :-1].gather(-1, s.tokens[:, prompt + 1 :, None]).double().mean((1, 2)) for s in sets]
        return Bench(title, model, tokenizer, names[: args.documents], sets, torch.cat(nll).tolist())

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    def row(self, fmt: Format) -> dict:
        """Figures of a format: bits, means over the documents, and the values of each document."""
        parts = [measure(s, fmt) for s in self.sets]
        result = {name: [x for part in parts for x in part[name]] for name in parts[0]}
        key_bits, value_bits = fmt.effective_bits(self.layers, self.model.config.head_dim)
        split: dict[bool, list[float]] = {True: [], False: []}
        for name, kl in zip(self.names, result["kl"], strict=True):
            split[name in HELD_OUT].append(kl)
        return {
            "name": fmt.name,
            "key_bits": key_bits,
            "value_bits": value_bits,
            "kl": statistics.fmean(result["kl"]),
            "kl_chosen": statistics.fmean(split[False]) if split[False] else None,
            "kl_held_out": statistics.fmean(split[True]) if split[True] else None,
            "top1": statistics.fmean(result["top1"]),
            "nll": statistics.fmean(result["nll"]),
            "per_document": {name: [round(x, 6) for x in values] for name, values in result.items()},
        }

    def head(self) -> dict:
        """The fields of a results file before its rows."""
        device = self.sets[0].tokens.device
        types = getattr(self.model.config, "layer_types", None) or ["full_attention"] * self.layers
        return {
            "model": self.title,
            "layers": self.layers,
            "quantized_layers": types.count("full_attention"),
            "positions": sum(s.tokens.shape[0] * (s.tokens.shape[1] - s.prompt) for s in self.sets),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": torch.__version__,
            "documents": self.names,
            "nll_full": self.nll_full,
        }
