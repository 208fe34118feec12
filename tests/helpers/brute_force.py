"""A second, slow implementation of the quantizer and the cache in numpy, written from their description.

Everything is a loop over one group, one token, one head. Nothing here imports the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
SMALLEST_NORMAL_FLOAT32 = float(np.finfo(np.float32).tiny)
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float(np.array([0x7F7F0000], dtype=np.uint32).view(np.float32)[0]),
    "float32": LARGEST_FLOAT32,
}


def round_to(x, name: str):
    """A number rounded to nearest even in the named 16-bit (or 32-bit) format."""
    x = np.float32(x)
    if name == "float32" or np.isnan(x):
        return x
    if name == "float16":
        return np.float32(np.float16(x))
    word = int(np.array([x], dtype=np.float32).view(np.uint32)[0])
    word = (word + 0x7FFF + ((word >> 16) & 1)) & 0xFFFF0000
    return np.array([word], dtype=np.uint32).view(np.float32)[0]


def short_numbers(name: str) -> np.ndarray:
    """All finite non-negative numbers of a float16 that keeps 2 or 3 bits of its mantissa, in order, float64."""
    shift = {"float8_e5m2": 8, "pair8": 7}[name]
    words = np.arange(0, 0x7C00, 1 << shift, dtype=np.uint16)
    return words.view(np.float16).astype(np.float64)


def round_short(x, name: str, bits: int, limit=None):
    """A scale as it is kept in few bits: the nearest, even on ties, for codes of up to 4 bits; else away from zero."""
    if np.isnan(x):
        return np.float32(x)
    numbers, size = short_numbers(name), float(min(abs(np.float32(x)), limit or math.inf))
    above = int(np.searchsorted(numbers, size))
    if above == len(numbers):
        index = above - 1
    elif bits > 4 or above == 0 or numbers[above] == size:
        index = above
    else:
        gap = (numbers[above] - size) - (size - numbers[above - 1])
        index = above if gap < 0 or (gap == 0 and above % 2 == 0) else above - 1
    return np.float32(math.copysign(numbers[index], x))


def clip(x, largest):
    return x if np.isnan(x) else min(max(x, type(x)(-largest)), type(x)(largest))


def _codes(group, scale, zero, low: int, high: int, divide: bool = False):
    """The nearest codes, by the rounded inverse of the scale (by division, as the paper's formula has it)."""
    number = group.dtype.type
    if abs(scale) < SMALLEST_NORMAL_FLOAT32:
        return [0] * len(group), number(0)
    out, inverse = [], number(1) / number(scale)
    for x in group:
        ratio = x if zero is None else x - number(zero)
        ratio = ratio / scale if divide else ratio * inverse
        out.append(0 if np.isnan(ratio) else int(np.rint(min(max(ratio, number(low)), number(high)))))
    return out, scale


@dataclass
class Group:
    """What one group becomes: ``decoded[i] = signed[i] * scale + zero``, stored code ``signed[i] + offset``."""

    signed: list
    scale: float
    zero: float | None
    offset: int

    @property
    def stored(self) -> list:
        return [code + self.offset for code in self.signed]

    def decode(self, number=np.float64) -> np.ndarray:
        zero = number(0) if self.zero is None else number(self.zero)
        return np.array([number(code) * number(self.scale) + zero for code in self.signed], dtype=number)


def quantize_group(group, mode: str, bits: int, scale_dtype: str, anchor: int | None = None, query=None) -> Group:
    """One group of float32 or float64 numbers, in the arithmetic of its dtype.

    symmetric   scale = max|x| / m,              codes -m .. m with m = 2^(b-1) - 1
    signed      scale = -(extreme x) / 2^(b-1),  codes -2^(b-1) .. 2^(b-1) - 1
    asymmetric  scale = (max - min) / (2^b - 1), codes 0 .. 2^b - 1, zero = min
    anchored    asymmetric, with a zero point moved by up to half a scale so that element ``anchor`` lies on a code
    steered     asymmetric (or signed, for 2 bits), with that of 4 zero points (2 for 5 bits, 1 for more), a quarter of
                a scale apart, whose errors e cost least: (mean . e)^2 + sum of weight e^2, with ``query`` = mean and
                weight of each element, whole numbers; see :func:`_steered_steps`
    hybrid      the better of signed (its zero written as -2^(b-1) scales) and asymmetric, by squared error
    paper_hybrid  asymmetric of b - 1 bits, or symmetric where its absolute errors sum up to less
    """
    number = group.dtype.type
    with np.errstate(all="ignore"):
        return _quantize_group(
            np.array([clip(x, np.finfo(number).max) for x in group], number),
            *(mode, bits, scale_dtype, anchor, query, bool((np.abs(group) >= np.finfo(number).max).any())),
        )


def _fma(number, a, b, c):
    """``a * b + c``, rounded once."""
    return number(float(a) * float(b) + float(c))


def _past_code(x, smallest, inverse, levels):
    """How far ``x`` lies past the nearest code of a group that begins at ``smallest``, in scales."""
    number = type(x)
    off = _fma(number, x, inverse, -(smallest * inverse))
    off = off if np.isnan(off) else min(max(off, number(0)), number(levels))
    return off - np.rint(off)


def least_token(tokens) -> int:
    """The first token of ``tokens [N, D]`` whose norm is as small as the least, to a thousandth; NaN is infinite."""
    norms = np.square(np.asarray(tokens, np.float32)).sum(-1)
    norms = np.where(np.isnan(norms), np.float32(np.inf), norms)
    return int(np.argmax(norms <= norms.min() * np.float32(1 + 2.0**-10)))


def _quantize_group(group, mode, bits, scale_dtype, anchor, query, infinite) -> Group:
    number = group.dtype.type
    half, levels = 1 << (bits - 1), (1 << bits) - 1
    broken = bool(np.isnan(group).any())
    largest = number("nan") if broken else group.max()
    smallest = number("nan") if broken else group.min()

    if scale_dtype == "pair8":
        return _quantize_pair(group, smallest, largest, mode, bits, anchor, query, infinite)

    def stored(scale, reach):
        """A scale rounded to its format, and small enough for ``reach`` times it to be finite."""
        if scale_dtype == "float8_e5m2":
            return number(round_short(scale, scale_dtype, bits, 57344.0 / reach))
        return number(round_to(clip(number(scale), LARGEST[scale_dtype] / reach), scale_dtype))

    if mode == "symmetric":
        m = half - 1
        extreme = max(abs(largest), abs(smallest)) if not broken else largest
        scale = stored(extreme / number(m), m)
        codes, scale = _codes(group, scale, None, -m, m, divide=True)
        return Group(codes, scale, None, half)

    short = scale_dtype == "float16"  # decoding is float32, which has room for any code of a float16 scale
    if mode == "paper_hybrid":
        m = half - 1
        zero = number(round_to(clip(smallest, LARGEST[scale_dtype]), scale_dtype))
        codes, scale = _codes(group, stored((largest - smallest) / number(m), 1 if short else m), zero, 0, m)
        asymmetric = Group(codes, scale, zero, 0)
        extreme = largest if broken else max(abs(largest), abs(smallest))
        codes, scale = _codes(group, stored(extreme / number(m), half if short else 2 * half), None, -m, m)
        symmetric = Group([code + half for code in codes], scale, number(round_to(-half * scale, scale_dtype)), 0)
        errors = [number(np.abs(way.decode(number) - group).sum()) for way in (symmetric, asymmetric)]
        return asymmetric if errors[1] <= errors[0] else symmetric

    extreme = largest if largest > -smallest else smallest
    signed_scale = stored(-extreme / number(half), 2 * half if mode == "hybrid" and not short else half)
    codes, signed_scale = _codes(group, signed_scale, None, -half, half - 1)
    signed = Group(codes, signed_scale, None, half)
    if mode == "signed":
        return signed

    scale = stored(largest / number(levels) - smallest / number(levels), 1 if short else levels)
    zero = smallest
    if mode == "anchored" and abs(scale) >= SMALLEST_NORMAL_FLOAT32:
        past = _past_code(group[anchor], smallest, number(1) / number(scale), levels)
        zero = _fma(number, past, scale, smallest)
        zero = min(zero, number(LARGEST[scale_dtype]) - number(scale) * number(levels))
    zero = number(round_to(clip(zero, LARGEST[scale_dtype]), scale_dtype))
    codes, scale = _codes(group, scale, zero, 0, levels)
    asymmetric = Group(codes, scale, zero, 0)
    if mode in ("asymmetric", "anchored"):
        return asymmetric

    shifted = Group(signed.stored, signed.scale, number(round_to(-half * signed.scale, scale_dtype)), 0)
    errors = [number(np.square(way.decode(number) - group).sum()) for way in (shifted, asymmetric)]
    return shifted if errors[0] <= errors[1] else asymmetric


def _coded_within(group, scale, steps, bits) -> Group:
    """Codes as shares of the largest one, limited to [0, 1]; two roundings."""
    number, levels, step = group.dtype.type, (1 << bits) - 1, 2.0 ** (bits - 6)
    share = number(1 / levels)
    inverse, offset = number(1) / number(scale if scale != 0 else 1) * share, number(steps * step) * share
    shares = [_fma(number, x, inverse, -offset) for x in group]
    codes = [0 if np.isnan(s) else int(np.rint(float(min(max(s, number(0)), number(1))) * levels)) for s in shares]
    return Group(codes, number(scale), number(steps * step * number(scale)), 0)


def _steered_steps(group, scale, steps, bits, means, weights):
    """Steps of the zero point, of those within half a scale of ``steps``, whose errors cost least; integers throughout.

    Errors are whole 256ths of a scale, between -128 and 127: what lies past the ends of the codes wraps around, and is
    made up for by the end that is furthest past, at the mean weight. A square is a line for each quarter of a scale,
    which is right to a constant that all zero points share.
    """
    shift = {16: 4, 32: 4, 64: 5, 128: 6}[len(group)]
    step, levels, zero = 2.0 ** (bits - 6), (1 << bits) - 1, np.float32(1.5 * 2.0**15)
    inverse = float(group.dtype.type(1) / group.dtype.type(scale if scale != 0 else 1))

    def parts(x):  # of a float32 whose last bit is worth 1/256
        past = np.float32(float(x) * inverse + (float(zero) - steps * step))
        return int(past.view(np.int32)) - int(zero.view(np.int32))

    best = least = base = None
    for quarters in {5: (0, 2)}.get(bits, (0, 1, 2, -1) if bits < 5 else (0,)):
        product = rest = 0
        for x, mean, weight in zip(group, means.tolist(), weights.tolist(), strict=True):
            error = (parts(x) - 64 * quarters + 128) % 256 - 128
            size = error if error >= 0 else -error - 1
            product += mean * error
            rest += weight * (size if size < 64 else 3 * size - 127)
        top, bottom = parts(group.max()) - 64 * quarters, parts(group.min()) - 64 * quarters
        beyond = min(max(top - 256 * levels - 128, -128 - bottom, 0), 255)
        base = rest if base is None else base
        rest += -base + beyond * int(weights.sum()) * 8 // len(group)
        cost = (product >> shift) ** 2 + (rest >> (2 * shift - 6))
        trial = steps + quarters * 0.25 / step
        if best is None or (cost < least and abs(trial) <= 127):
            best, least = trial, cost
    return best


def _quantize_pair(group, smallest, largest, mode, bits, anchor, query, infinite) -> Group:
    """Scale and zero point in one word: 8 bits of float16 and a sign and 7 bits, in steps of 2^(bits-6) scales."""
    number = group.dtype.type
    half, levels, step, limit = 1 << (bits - 1), (1 << bits) - 1, 2.0 ** (bits - 6), 61440.0

    def coded(scale, steps) -> tuple[Group, np.ndarray]:
        """The group, and its errors: both are found in scales."""
        unit = number(scale) if scale != 0 else number(1)
        zero, inverse = steps * step, number(1) / unit
        ratios = np.array([number(float(x) * float(inverse) - float(zero)) for x in group], number)
        codes = [0 if np.isnan(r) else int(np.rint(min(max(r, number(0)), number(levels)))) for r in ratios]
        return Group(codes, number(scale), number(steps * step * number(scale)), 0), ratios - np.array(codes, number)

    def squared(way: tuple[Group, np.ndarray]):
        unit = number(way[0].scale) if way[0].scale != 0 else number(1)
        return np.square(way[1]).sum() * (unit * unit)

    wanted = (largest / number(2) - smallest / number(2)) * number(2 / levels)
    reachable = np.abs(np.float32(smallest)) * np.float32(1 / (127 * step))
    scale = round_short(max(np.float32(wanted), reachable), "pair8", bits, limit)
    if abs(smallest) > scale * 127 * step:
        bigger = short_numbers("pair8")
        scale = np.float32(min([x for x in bigger if x > scale], default=limit))
    inverse = number(1) / number(scale if scale != 0 else 1)
    ratio = number(smallest) * inverse
    if mode == "anchored":
        ratio = _fma(number, smallest, inverse, _past_code(group[anchor], smallest, inverse, levels))
    ratio *= number(1 / step)
    steps = ratio if np.isnan(ratio) else np.rint(min(max(ratio, number(-127)), number(127)))
    if scale == limit and largest > 0:  # both ends do not fit
        steps = max(steps, -round(half / step))
    positive = bool(largest > -smallest)
    signed_scale = round_short((largest if positive else -smallest) / number(half), "pair8", bits, limit)
    signed_steps = -round((half - 1 if positive else half) / step) if signed_scale != 0 else 0
    signed = coded(signed_scale, signed_steps)
    if mode == "steered":
        if np.isnan(scale):
            return coded(scale, steps)[0]
        if not infinite:
            steps = _steered_steps(group, scale, steps, bits, *query)
        if bits == 2 and not infinite:
            costs = []
            for size, (_, error) in ((scale, coded(scale, steps)), (signed_scale, signed)):
                unit = number(size if size != 0 else 1)
                cost = np.square((query[0] * error).sum()) + (query[1] * np.square(error)).sum()
                costs.append(number(cost) * (unit * unit))
            if costs[1] * number(1 + 2.0**-10) < costs[0]:
                scale, steps = signed_scale, signed_steps
        return _coded_within(group, scale, steps, bits)
    asymmetric = coded(scale, steps)
    if mode != "hybrid":
        return asymmetric[0]
    return (signed if squared(signed) <= squared(asymmetric) * number(1 + 2.0**-10) else asymmetric)[0]


def quantize_block(block, *, key: bool, mode: str, bits: int, group_size: int, scale_dtype: str) -> np.ndarray:
    """Decoded numbers of a block ``[tokens, D]`` (float32): what a reader of the cache may see of it."""
    block = np.asarray(block, dtype=np.float32)
    out = np.empty_like(block)
    tokens, head_dim = block.shape
    if key:
        places = [
            (slice(t, t + 1), slice(c, c + group_size)) for t in range(tokens) for c in range(0, head_dim, group_size)
        ]
    else:
        places = [
            (slice(t, t + group_size), slice(c, c + 1)) for t in range(0, tokens, group_size) for c in range(head_dim)
        ]
    for place in places:
        group = block[place].reshape(-1)
        if mode == "none":
            out[place] = block[place]
        else:
            anchor = least_token(block[place[0]]) if mode == "anchored" else None
            unknown = np.zeros(len(group), np.int64), np.ones(len(group), np.int64)
            decoded = quantize_group(group, mode, bits, scale_dtype, anchor, unknown).decode(np.float32)
            out[place] = decoded.reshape(block[place].shape)
    return out


@dataclass
class Sequence:
    """One head of one sequence, as a list of tokens: the model that the cache's storage is held to.

    The first ``sink`` tokens and the last ``recent`` to ``recent + block - 1`` stay as they came. In between, blocks
    of tokens are quantized as soon as ``recent`` tokens follow them.
    """

    sink: int
    recent: int
    block: int
    quantize: dict
    window_round: object = None  # rounds decoded tokens that move back into the window
    tokens: list = field(default_factory=list)
    boundary: int = -1  # first token behind the quantized region

    def __post_init__(self):
        self.boundary = self.sink

    def append(self, token) -> None:
        self.tokens.append(np.asarray(token, dtype=np.float32))
        if len(self.tokens) == self.boundary + self.recent + self.block:
            inside = slice(self.boundary, self.boundary + self.block)
            self.tokens[inside] = list(quantize_block(np.stack(self.tokens[inside]), **self.quantize))
            self.boundary += self.block

    def truncate(self, length: int) -> None:
        """Tokens from ``length`` on are forgotten; a block that this cuts goes back to the window as it was read."""
        length = max(0, min(length, len(self.tokens)))
        del self.tokens[length:]
        if length < self.boundary:
            blocks = max(0, math.floor((length - self.sink) / self.block))
            self.boundary = self.sink + blocks * self.block
            self.tokens[self.boundary :] = [self.window_round(token) for token in self.tokens[self.boundary :]]


def attention(query, keys, values, *, scale, visible, bias=None, softcap=0.0, sink_logit=None) -> np.ndarray:
    """One query ``[D]`` against ``keys, values [S, D]`` in float64; ``visible [S]`` bool, ``bias [S]`` additive."""
    scores = []
    for position in range(len(keys)):
        if not visible[position]:
            continue
        score = float(np.dot(query.astype(np.float64), keys[position].astype(np.float64))) * scale
        score = softcap * math.tanh(score / softcap) if softcap else score
        score += float(bias[position]) if bias is not None else 0.0
        scores.append((position, score))
    scores = [(position, score) for position, score in scores if score != -math.inf]
    out = np.zeros(values.shape[-1], dtype=np.float64)
    if not scores:
        return out
    top = max([score for _, score in scores] + ([float(sink_logit)] if sink_logit is not None else []))
    total = math.exp(float(sink_logit) - top) if sink_logit is not None else 0.0
    total += sum(math.exp(score - top) for _, score in scores)
    for position, score in scores:
        out += math.exp(score - top) / total * values[position].astype(np.float64)
    return out


def quantizer_of(fmt) -> dict:
    """What a format says of the quantizer, as :func:`quantize_block` takes it."""
    return {
        "key": fmt.is_key,
        "mode": fmt.mode,
        "bits": fmt.bits,
        "group_size": fmt.group_size,
        "scale_dtype": fmt.scale_dtype,
    }
