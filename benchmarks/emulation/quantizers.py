"""Quantizers to measure: the library's, the paper's, KIVI-like ones, and variants for experiments.

Each maps numbers to what a cache would dequantize to, over groups in the last dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from innerq_compile.kernels.formats import CacheFormat
from innerq_compile.kernels.modes import named
from innerq_compile.kernels.reference import dequantize_groups as product_numbers
from innerq_compile.kernels.reference import key_statistics, normalize_keys
from innerq_compile.kernels.reference import quantize_groups as product_groups

from .product import stored_bits
from .zero_points import anchored, steered

#: Bytes of a scale or zero point, by how it is stored.
STORED_BYTES = {"exact": 4, "float16": 2, "bfloat16": 2, "e4m3": 1, "e5m2": 1, "log8": 1, "rel8": 1, "pair8": 1}


@dataclasses.dataclass(frozen=True)
class Side:
    """The format of one side of a cache (keys or values).

    Attributes:
        mode: ``none``, a mode of the library, or ``paper_hybrid`` (the paper's rule: b-1 bits asymmetric against b
            bits symmetric, by absolute error).
        bits, group: as in :class:`CacheFormat`.
        along: ``inner`` (keys: channels of a token, values: tokens of a channel) or ``outer`` (the other way, as KIVI).
        scale, zero: how scales and zero points are stored. ``rel8`` is a zero point in 256 fractions of the scale.
        search: factors that the scale is tried with; the least error wins. ``signs`` tries both signs of signed scales.
        weight: for keys, ``query`` weighs a channel's error by the mean square of the prompt's queries there.
        refit: ``ls`` fits scale (and zero point) to the codes by least squares, ``unbiased`` so that
            ``x . decoded == x . x``; each is followed by codes anew.
        feedback: what earlier elements of a vector lost is made up for by later ones. Keys: 1 weighs the error by the
            second moment of the prompt's queries (damped by ``damp``). Values: the weight of the group's common error
            against single ones; ``measured`` takes the second moment of the prompt's attention.
        order: keys with feedback: ``natural``, ``descending`` or ``ascending`` mean square of the query's channels.
        centre: ``mean`` or ``midrange`` of each channel over the prompt is taken out, or None.
        power, stat, pair: channels are divided by ``stat ** power`` (``max`` or ``rms``), shared by a rotary pair.
        skip_sinks: the statistics leave the sinks out.
        transform: ``hadamard``, ``pca`` (of the keys), ``balance`` (root of the query's second moment, to the power
            ``balance``, then Hadamard), ``sort`` (channels by magnitude), or None.
        query_power: the divisors of channels are divided by the query's root mean square to this power.
        zero_search: how the zero point of asymmetric ``pair8`` groups is chosen (``zero_points.py``), or 0. Values: 1
            puts the token of least norm on a code. Keys: so many are tried, against the mean and variance of the
            prompt's queries.
        product: the statistics of keys are those of ``kernels.reference`` (with ``centre``, ``power`` as switches).
    """

    mode: str = "none"
    bits: int = 16
    group: int = 32
    along: str = "inner"
    scale: str = "float16"
    zero: str = "float16"
    search: tuple[float, ...] = (1.0,)
    signs: bool = False
    weight: str | None = None
    refit: str | None = None
    feedback: float | str = 0.0
    damp: float = 0.01
    order: str = "natural"
    centre: str | None = None
    power: float = 0.0
    stat: str = "max"
    pair: bool = False
    skip_sinks: bool = False
    transform: str | None = None
    balance: float = 1.0
    query_power: float = 0.0
    zero_search: int = 0
    product: bool = False

    @property
    def quantized(self) -> bool:
        """False where the elements themselves are kept."""
        return named(self.mode).stores_codes

    def bits_per_element(self, head_dim: int) -> float:
        """Bits of an element of the quantized region, codes, scales and zero points together."""
        if not self.quantized:
            return 16.0
        kinds = [self.scale] + ([self.zero] if named(self.mode).has_zero else [])
        if set(kinds) <= {"float16", "bfloat16"}:  # the library stores as many numbers
            return stored_bits(CacheFormat("value", self.bits, self.mode, self.group, 0, 0, self.scale), head_dim)
        return self.bits + 8 * sum(STORED_BYTES[kind] for kind in kinds) / self.group

    @property
    def is_product_rounding(self) -> bool:
        """Whether ``kernels.reference`` does the rounding."""
        plain = self.search == (1.0,) and not self.signs and not self.refit and not self.feedback
        stored = self.scale in ("float16", "bfloat16", "pair8") and self.zero == self.scale
        return plain and stored and not (self.mode in _RULES and _RULES[self.mode].paper)


# --- numbers as they are stored ------------------------------------------------------------------------------------


def stored(x: torch.Tensor, kind: str, bias: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Scales as they are read back. ``bias`` is the power of two that 8-bit kinds are relative to."""
    if kind == "exact":
        return x
    if kind in ("float16", "bfloat16"):
        return x.to(getattr(torch, kind)).to(x.dtype)
    if kind == "e4m3":
        return (x / bias * 128).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * bias / 128
    if kind == "e5m2":
        return (x / bias).to(torch.float8_e5m2).to(x.dtype) * bias
    if kind == "log8":  # a sign and 7 bits of logarithm, in steps of an eighth of an octave, down from twice the bias
        step = torch.round(8 * (torch.log2((x / bias).abs().clamp(min=1e-30)) - 1)).clamp(-126, 0)
        return torch.where(x == 0, torch.zeros_like(x), x.sign() * torch.exp2(step / 8 + 1) * bias)
    raise ValueError(f"scale kind {kind!r} is unknown")


def stored_zero(zero, scale, side: Side):
    if side.zero != "rel8":
        return stored(zero, side.zero)
    step = scale * (2**side.bits / 64)
    safe = torch.where(step == 0, torch.ones_like(step), step)
    return torch.round(zero / safe).clamp(-128, 127) * step


# --- rounding of groups --------------------------------------------------------------------------------------------


def _codes(x, scale, zero, low, high):
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.minimum(torch.maximum(torch.round((x - zero) / safe), low), high)


def _number(value, like):
    return torch.full_like(like, float(value))


def _symmetric(high, low, side: Side, factor: float):
    half, none = 2 ** (side.bits - 1), torch.zeros_like(high)
    scale = torch.maximum(high, -low) * (factor / (half - 1))
    yield scale, none, _number(1 - half, none), _number(half - 1, none)


def _signed(high, low, side: Side, factor: float):
    half, none = 2 ** (side.bits - 1), torch.zeros_like(high)
    scale = torch.where(high > -low, -1.0, 1.0) * torch.maximum(high, -low) * (factor / half)
    yield scale, none, _number(-half, none), _number(half - 1, none)
    if side.signs:
        yield -scale, none, _number(-half, none), _number(half - 1, none)


def _asymmetric(high, low, side: Side, factor: float):
    full, none = 2**side.bits - 1, torch.zeros_like(high)
    middle, reach = (high + low) / 2, (high - low) / 2 * factor
    yield reach * (2 / full), middle - reach, none, _number(full, none)


def _paper_asymmetric(high, low, side: Side, factor: float):
    half, none = 2 ** (side.bits - 1), torch.zeros_like(high)
    yield (high - low) / (half - 1), low, none, _number(half - 1, none)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How the scale and the zero point of a group are chosen.

    Attributes:
        candidates: functions ``(high, low, side, factor)`` of the extremes ``[..., 1]`` of groups. Each yields
            candidates (scale, zero, low code, high code), ``[..., 1]`` and not rounded.
        has_zero: for each of them, whether its zero point is stored, and rounded.
        paper: choose by the sum of absolute errors, and the later one of equal candidates; else by squared error, and
            the first.
    """

    candidates: tuple[Callable[..., Iterator[tuple[torch.Tensor, ...]]], ...]
    has_zero: tuple[bool, ...]
    paper: bool = False


_RULES = {
    "symmetric": _Rule((_symmetric,), (False,)),
    "signed": _Rule((_signed,), (False,)),
    "asymmetric": _Rule((_asymmetric,), (True,)),
    "hybrid": _Rule((_signed, _asymmetric), (False, True)),
    # symmetric comes first and stays unless asymmetric is no worse
    "paper_hybrid": _Rule((_symmetric, _paper_asymmetric), (False, True), paper=True),
}


def _bias(x, side: Side):
    """A power of two for the 8-bit scales of each head, from the largest number in it."""
    if side.scale not in ("e4m3", "e5m2", "log8"):
        return 1.0
    top = x.abs().amax(dim=tuple(range(2, x.dim())), keepdim=True).clamp(min=1e-20)
    return torch.exp2(torch.floor(torch.log2(top)))


def _fit(x, weight, codes, scale, zero, side: Side):
    w = torch.ones_like(x) if weight is None else weight.expand_as(x)
    if side.refit == "unbiased":
        y = x - zero
        new = (w * y * y).sum(-1, keepdim=True) / (w * y * codes).sum(-1, keepdim=True)
        return torch.where(new.isfinite() & (new.abs() < 1.5 * scale.abs()), new, scale), zero
    if not named(side.mode).has_zero:
        new = (w * x * codes).sum(-1, keepdim=True) / (w * codes * codes).sum(-1, keepdim=True)
        return torch.where(new.isfinite(), new, scale), zero
    total = w.sum(-1, keepdim=True)
    mx, mc = (w * x).sum(-1, keepdim=True) / total, (w * codes).sum(-1, keepdim=True) / total
    new = (w * (x - mx) * (codes - mc)).sum(-1, keepdim=True) / (w * (codes - mc).square()).sum(-1, keepdim=True)
    good = new.isfinite()
    return torch.where(good, new, scale), torch.where(good, mx - new * mc, zero)


def _parameters(x, side: Side, weight):
    """The (scale, zero, low, high) of least error for each group, as stored, ``[..., 1]`` each."""
    rule, bias, best = _RULES[side.mode], _bias(x, side), None
    high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    for candidates, has_zero in zip(rule.candidates, rule.has_zero, strict=True):
        found = (each for factor in side.search for each in candidates(high, low, side, factor))
        for scale, zero, low_code, high_code in found:
            for _ in range(3 if side.refit else 1):
                scale = stored(scale, side.scale, bias)
                kept_zero = stored_zero(zero, scale, side) if has_zero else zero
                codes = _codes(x, scale, kept_zero, low_code, high_code)
                error = codes * scale + kept_zero - x
                error = error.abs() if rule.paper else error.square()
                error = (error if weight is None else error * weight).sum(-1, keepdim=True)
                trial = (error, scale, kept_zero, low_code, high_code)
                if best is None:
                    best = trial
                else:
                    better = error <= best[0] if rule.paper else error < best[0]
                    best = tuple(torch.where(better, new, old) for new, old in zip(trial, best, strict=True))
                if side.refit:
                    scale, zero = _fit(x, weight, codes, scale, zero, side)
    return best[1:]


def feedback_factor(moment: torch.Tensor, damp: float) -> torch.Tensor:
    """U, strictly upper, with ``moment = (U + I) D (U + I)^T``, for moments ``[..., n, n]``."""
    n = moment.shape[-1]
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    damped = moment + damp * mean * torch.eye(n, device=moment.device, dtype=moment.dtype)
    upper = torch.linalg.cholesky(damped.double().flip(-1, -2)).flip(-1, -2)
    unit = upper / upper.diagonal(dim1=-2, dim2=-1)[..., None, :]
    return (unit - torch.eye(n, device=moment.device)).to(moment.dtype)


def round_with_feedback(x, scale, zero, low, high, factor):
    """Decoded ``x [..., n]``: the error of element j reaches element k > j by ``factor[..., j, k]``."""
    error, out = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(x.shape[-1]):
        target = x[..., k] + (error * factor[..., :, k].unsqueeze(-2)).sum(-1)
        s, z = scale[..., k], zero[..., k]
        out[..., k] = _codes(target, s, z, low[..., k], high[..., k]) * s + z
        error[..., k] = x[..., k] - out[..., k]
    return out


def quantized_groups(x: torch.Tensor, side: Side, weight=None) -> torch.Tensor:
    """Groups ``x [B, H, ..., g]`` quantized and dequantized, without feedback. ``weight`` broadcasts to x."""
    if side.is_product_rounding:
        fmt = CacheFormat("key", side.bits, side.mode, side.group, 0, 0, side.scale)
        return product_numbers(*product_groups(x, fmt), fmt, x.dtype)
    scale, zero, low, high = _parameters(x, side, weight)
    return _codes(x, scale, zero, low, high) * scale + zero


# --- keys and values -----------------------------------------------------------------------------------------------


def hadamard(n: int, device, dtype=torch.float32) -> torch.Tensor:
    m = torch.ones(1, 1, device=device, dtype=dtype)
    while m.shape[0] < n:
        m = torch.cat((torch.cat((m, m), 1), torch.cat((m, -m), 1)), 0)
    return m / n**0.5


def _root(moment, power):
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp(min=values.amax(-1, keepdim=True) * 1e-4) ** power
    return ((vectors * values[..., None, :]) @ vectors.mT).to(moment.dtype)


def _linear(x, side: Side, moment):
    """``(A, A^-1)`` of the transform ``x @ A``, each ``[B, H, D, D]`` or ``[D, D]``, or None."""
    if side.transform is None:
        return None
    head_dim = x.shape[-1]
    if side.transform == "hadamard":
        h = hadamard(head_dim, x.device)
        return h, h.T
    if side.transform == "pca":
        _, vectors = torch.linalg.eigh((x.mT @ x).double())
        vectors = vectors.flip(-1).to(x.dtype)
        return vectors, vectors.mT
    if side.transform == "sort":
        order = x.abs().amax(-2).argsort(-1)
        a = torch.nn.functional.one_hot(order, head_dim).to(x.dtype).mT
        return a, a.mT
    if side.transform == "balance":
        h = hadamard(head_dim, x.device)
        return _root(moment, side.balance / 2) @ h, h.T @ _root(moment, -side.balance / 2)
    raise ValueError(f"transform {side.transform!r} is unknown")


@dataclasses.dataclass
class Prompt:
    """What is measured of the prompt.

    Its keys or values ``x [B, H, S, D]``, second moments ``[B, H, n, n]`` (keys: of the queries; values: of the
    attention), and for keys the mean query ``[B, H, D]``.
    """

    x: torch.Tensor
    moment: torch.Tensor | None
    sink: int
    query_mean: torch.Tensor | None = None


def _prepared(x, side: Side, prompt: Prompt):
    """``x`` centred, transformed and normalized, the way back, and moment and mean of what it is multiplied with."""
    if side.product:
        start = torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        mean, norm = key_statistics(prompt.x, start, centre=bool(side.centre), normalize=bool(side.power))
        return normalize_keys(x, mean, norm), lambda y: y * norm.unsqueeze(-2) + mean.unsqueeze(-2), None, None
    seen = prompt.x[:, :, prompt.sink :] if side.skip_sinks else prompt.x
    centre = torch.zeros_like(seen[:, :, :1])
    if side.centre == "mean":
        centre = seen.mean(-2, keepdim=True)
    elif side.centre == "midrange":
        centre = (seen.amax(-2, keepdim=True) + seen.amin(-2, keepdim=True)) / 2
    x, seen = x - centre, seen - centre
    moment, query = prompt.moment, None if prompt.query_mean is None else prompt.query_mean.unsqueeze(-2)
    linear = _linear(seen, side, moment)
    if linear is not None:
        x, seen = x @ linear[0], seen @ linear[0]
        moment = None if moment is None else linear[1] @ moment @ linear[1].mT
        query = None if query is None else query @ linear[1].mT
    norm = torch.ones_like(seen[:, :, :1])
    if side.power:
        size = seen.abs().amax(-2, keepdim=True) if side.stat == "max" else seen.square().mean(-2, keepdim=True).sqrt()
        if side.pair:
            first, second = size.chunk(2, -1)
            size = torch.maximum(first, second).repeat(1, 1, 1, 2)
        norm = size.clamp(min=1e-6) ** side.power
        if side.query_power:
            size = moment.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-2)
            norm = norm / size.clamp(min=1e-6) ** side.query_power
        x = x / norm
        moment = None if moment is None else moment * norm.mT * norm
        query = None if query is None else query * norm

    def back(y):
        y = y * norm
        return (y if linear is None else y @ linear[1]) + centre

    return x, back, moment, query


def quantize_keys(k: torch.Tensor, side: Side, prompt: Prompt) -> torch.Tensor:
    """Keys ``[B, H, T, D]`` (whole blocks) quantized and dequantized."""
    if not side.quantized:
        return k
    x, back, moment, query = _prepared(k, side, prompt)
    batch, heads, tokens, head_dim = x.shape
    if side.along == "outer":
        groups = x.reshape(batch, heads, tokens // side.group, side.group, head_dim).mT
        out = quantized_groups(groups, side).mT
        return back(out.reshape(x.shape))
    shape = (batch, heads, tokens, head_dim // side.group, side.group)
    if side.zero_search:
        spread = (moment.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) - query.square()).clamp(min=0)
        query, spread = (each.unflatten(-1, shape[-2:]) for each in (query, spread))
        return back(steered(x.reshape(shape), side.bits, query, spread, side.zero_search).reshape(x.shape))
    weight = None
    if side.weight == "query":
        weight = moment.diagonal(dim1=-2, dim2=-1).reshape(batch, heads, 1, *shape[-2:])
    if not side.feedback:
        return back(quantized_groups(x.reshape(shape), side, weight).reshape(x.shape))
    parameters = _parameters(x.reshape(shape), side, weight)
    wide = [p.expand(shape).reshape(x.shape) for p in parameters]
    if side.order != "natural":
        order = moment.diagonal(dim1=-2, dim2=-1).argsort(-1, descending=side.order == "descending")
        moment = moment.gather(-1, order[..., None, :].expand_as(moment))
        moment = moment.gather(-2, order[..., :, None].expand_as(moment))
        pick = order[..., None, :].expand_as(x)
        x, wide = x.gather(-1, pick), [w.gather(-1, pick) for w in wide]
    out = round_with_feedback(x, *wide, feedback_factor(moment, side.damp))
    if side.order != "natural":
        out = torch.zeros_like(out).scatter_(-1, pick, out)
    return back(out)


def quantize_values(v: torch.Tensor, side: Side, prompt: Prompt) -> torch.Tensor:
    """Values ``[B, H, T, D]`` (whole blocks) quantized and dequantized."""
    if not side.quantized:
        return v
    x, back, *_ = _prepared(v, side, dataclasses.replace(prompt, moment=None))
    batch, heads, tokens, head_dim = x.shape
    if side.along == "outer":
        groups = x.reshape(batch, heads, tokens, head_dim // side.group, side.group)
        return back(quantized_groups(groups, side).reshape(x.shape))
    groups = x.reshape(batch, heads, tokens // side.group, side.group, head_dim).mT
    if side.zero_search:
        out = anchored(groups, side.bits)
    elif not side.feedback:
        out = quantized_groups(groups, side)
    else:
        wide = [p.expand(groups.shape) for p in _parameters(groups, side, None)]
        if side.feedback == "measured":
            factor = feedback_factor(prompt.moment[:, :, None], side.damp)
        else:
            n = side.group
            moment = torch.eye(n, device=x.device) + side.feedback * torch.ones(n, n, device=x.device)
            factor = feedback_factor(moment, 0.0)
        out = round_with_feedback(groups, *wide, factor)
    return back(out.mT.reshape(x.shape))
