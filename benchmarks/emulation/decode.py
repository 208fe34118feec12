"""Teacher-forced decoding through a quantized cache, emulated exactly in one forward pass.

Decoding one token at a time, the query of position t sees key j as the cache holds it after t was appended: quantized
where ``sink <= j < sink + block * floor((t + 1 - sink - recent) / block)``, exact otherwise. All hidden states of a
layer are known once the layer below is done, so one pass over all positions gives the same as hundreds of steps.
Attention within the prompt is exact and the same for every format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from innerq_compile.kernels.reference import query_moments

from .product import ProductSide
from .quantizers import Prompt, Side, quantize_keys, quantize_values

IMPLEMENTATION = "innerq_fidelity"


@dataclasses.dataclass(frozen=True)
class Format:
    """A cache format to measure. ``special`` gives some layers other formats: ``((layers, key, value), ...)``."""

    name: str
    key: Side | ProductSide
    value: Side | ProductSide
    sink: int = 32
    recent: int = 96
    special: tuple[tuple[tuple[int, ...], Side, Side], ...] = ()

    def sides(self, layer: int) -> tuple[Side | ProductSide, Side | ProductSide]:
        for layers, key, value in self.special:
            if layer in layers:
                return key, value
        return self.key, self.value

    def effective_bits(self, layers: int, head_dim: int) -> tuple[float, float]:
        pairs = [self.sides(layer) for layer in range(layers)]
        return tuple(sum(pair[i].bits_per_element(head_dim) for pair in pairs) / layers for i in (0, 1))


def quantized_end(length, sink: int, recent: int, block: int):
    """End of the quantized region of a cache of ``length`` tokens (a tensor)."""
    return sink + block * ((length - sink - recent).div(block, rounding_mode="floor")).clamp(min=0)


def _attend(q, k, v, khat, vhat, key_end, value_end, first, scaling, window):
    """Attention of queries ``[B, H, G, N, D]`` at positions ``first ...`` to keys ``[B, H, S, D]``."""
    rows, tokens = q.shape[-2], k.shape[-2]
    position = torch.arange(first, first + rows, device=q.device)[:, None]
    other = torch.arange(tokens, device=q.device)[None]
    visible = other <= position
    if window:
        visible = visible & (other > position - window)
    scores = (q @ k[:, :, None].mT) * scaling
    if khat is not None:
        low, end = key_end
        held = (other >= low) & (other < end(position + 1))
        scores = torch.where(held, (q @ khat[:, :, None].mT) * scaling, scores)
    weights = scores.masked_fill_(~visible, float("-inf")).softmax(-1)
    if vhat is None:
        return weights @ v[:, :, None]
    low, end = value_end
    held = (other >= low) & (other < end(position + 1))
    exact = weights.masked_fill(held, 0.0) @ v[:, :, None]
    return exact + weights.masked_fill_(~held, 0.0) @ vhat[:, :, None]


class Emulation:
    """A model and a batch of documents ``[B, S]``, of which the first ``prompt`` tokens are prefilled.

    Layers with a sliding window stay in full precision, as in the library; ``sliding`` quantizes them too.

    Attributes:
        reference: full-precision log-probabilities after each decoded position, ``[B, S - prompt, vocab]``, or None.
    """

    def __init__(self, model, tokens: torch.Tensor, prompt: int, sliding: bool = False, reference: bool = True) -> None:
        self.model, self.tokens, self.prompt, self.sliding = model, tokens, prompt, sliding
        self.layers: dict[int, dict[str, torch.Tensor]] = {}
        self._format: Format | None = None
        install(model)
        with torch.no_grad():
            self._run(tokens[:, :prompt], 0, self._prefill, logits=False)
            self.reference = self.logits(None).log_softmax(-1) if reference else None

    def logits(self, fmt: Format | None) -> torch.Tensor:
        """Logits after each decoded position, ``[B, S - prompt, vocab]``; ``None`` is full precision."""
        self._format = fmt
        return self._run(self.tokens[:, self.prompt :], self.prompt, self._decode)

    def _run(self, tokens, first: int, attention: Callable, logits: bool = True):
        positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)[None].expand(tokens.shape)
        _current.append(attention)
        try:
            body = self.model.model(input_ids=tokens, position_ids=positions, use_cache=False)
            if not logits:
                return None
            hidden = body.last_hidden_state
            return torch.stack([self.model.lm_head(h).float() for h in hidden])
        finally:
            _current.pop()

    def _prefill(self, layer: int, q, k, v, scaling, window):
        moment = (q.mT @ q).sum(2) / (q.shape[2] * q.shape[3])
        self.layers[layer] = {"k": k, "v": v, "query_moment": moment, "query_mean": q.mean((2, 3))}
        self.layers[layer]["q_tail"] = q[..., -256:, :]
        start = torch.zeros(q.shape[0], dtype=torch.int32, device=q.device)
        self.layers[layer]["query_moments"] = query_moments(q.flatten(1, 2), k, start)
        return _attend(q, k, v, None, None, None, None, 0, scaling, window)

    def attention_moment(self, layer: int, size: int, scaling: float) -> torch.Tensor:
        """Second moment of late prompt queries' weights within groups of ``size`` tokens, ``[B, H, size, size]``."""
        state = self.layers[layer]
        key = f"attention_moment_{size}"
        if key not in state:
            last = self.prompt - state["q_tail"].shape[-2]
            end = 32 + (last - 32 - 64) // 128 * 128
            scores = (state["q_tail"] @ state["k"][:, :, None, :last].mT) * scaling
            weights = scores.softmax(-1)[..., 32:end]
            weights = weights.unflatten(-1, (-1, size)).flatten(2, 4)
            # groups have equal weight: a group with large attention weights says no more about their shape than another
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
            state[key] = weights.mT @ weights / weights.shape[2]
        return state[key]

    def _decode(self, layer: int, q, k, v, scaling, window):
        seen = self.layers[layer]
        k, v = torch.cat((seen["k"], k), 2), torch.cat((seen["v"], v), 2)
        if self._format is None or (window and not self.sliding):
            return _attend(q, k, v, None, None, None, None, self.prompt, scaling, window)
        fmt = self._format
        key_side, value_side = fmt.sides(layer)
        prompt = Prompt(seen["k"], seen["query_moment"], fmt.sink, seen["query_mean"])
        khat, key_end = self._held(k, fmt, key_side, quantize_keys, prompt, seen["query_moments"])
        measured = isinstance(value_side, Side) and value_side.feedback == "measured"
        moment = self.attention_moment(layer, value_side.group, scaling) if measured else None
        vhat, value_end = self._held(v, fmt, value_side, quantize_values, Prompt(seen["v"], moment, fmt.sink))
        return _attend(q, k, v, khat, vhat, key_end, value_end, self.prompt, scaling, window)

    def _held(self, x, fmt: Format, side: Side | ProductSide, quantize: Callable, prompt: Prompt, moments=None):
        """``x`` with the quantized region dequantized, and where that region lies."""
        if isinstance(side, ProductSide):
            out, held = side.held(x, self.prompt, moments)
            return out, (held.sink, lambda length: quantized_end(length, held.sink, held.recent, held.block))
        if not side.quantized:
            return None, None
        is_key = quantize is quantize_keys
        block = max(32, side.group) if (side.along == "inner") != is_key else 32

        def end(length):
            return quantized_end(length, fmt.sink, fmt.recent, block)

        last = int(end(torch.tensor(x.shape[2])))
        out = x.clone()
        out[:, :, fmt.sink : last] = quantize(x[:, :, fmt.sink : last], side, prompt)
        return out, (fmt.sink, end)


def queries_of(model, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The queries ``[B, Hq, S, D]`` of each layer of an installed model for the tokens ``[B, S]``."""
    found = []

    def record(layer, q, k, v, scaling, window):
        found.append(q.flatten(1, 2))
        return _attend(q, k, v, None, None, None, None, 0, scaling, window)

    _current.append(record)
    try:
        model.model(input_ids=tokens, use_cache=False)
    finally:
        _current.pop()
    return found


# --- hooks into transformers --------------------------------------------------------------------------------------

_current: list[Callable] = []


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs):
    batch, q_heads, rows, head_dim = query.shape
    heads = key.shape[1]
    q = query.reshape(batch, heads, q_heads // heads, rows, head_dim)
    scaling = head_dim**-0.5 if scaling is None else scaling
    out = _current[-1](module.layer_idx, q, key, value, scaling, sliding_window)
    return out.reshape(batch, q_heads, rows, -1).transpose(1, 2).contiguous(), None


def install(model) -> None:
    """Make a transformers model call the emulation instead of its attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *args, **kwargs: None)
    model.set_attn_implementation(IMPLEMENTATION)


# --- measures ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(emulation: Emulation, fmt: Format) -> dict[str, list[float]]:
    """Per document: mean KL(full || quantized), share of equal top tokens, and mean negative log-likelihood."""
    logits = emulation.logits(fmt)
    return compare(logits, emulation.reference, emulation.tokens[:, emulation.prompt :])


def compare(logits: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor) -> dict[str, list[float]]:
    result: dict[str, list[float]] = {"kl": [], "top1": [], "nll": []}
    for row, full, text in zip(logits, reference, tokens, strict=True):
        ours = row.log_softmax(-1)
        result["kl"].append(float((full.exp() * (full - ours)).sum(-1).double().mean()))
        result["top1"].append(float((full.argmax(-1) == ours.argmax(-1)).double().mean()))
        result["nll"].append(float(-ours[:-1].gather(-1, text[1:, None]).double().mean()))
    return result
