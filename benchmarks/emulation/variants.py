"""The formats that ``format_search.py`` tries, most important first."""

from __future__ import annotations

import dataclasses

from .decode import Format
from .known import known_formats
from .quantizers import Side

NONE = Side()
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
WIDE = (1.1, 1.05, *SHRINK, 0.65, 0.6, 0.55)
E8 = {"scale": "e4m3", "zero": "rel8"}
P8 = {"scale": "pair8", "zero": "pair8"}


def K(mode: str, bits: int, **changes) -> Side:
    return Side(mode, bits, **{"centre": "mean", "power": 0.5, **changes})


def V(mode: str, bits: int, **changes) -> Side:
    return Side(mode, bits, **changes)


def describe(side: Side) -> str:
    """Mode and bits of a side, then what differs from the defaults."""
    if not side.quantized:
        return "fp"
    words = [f"{side.mode}{side.bits}"]
    for field in dataclasses.fields(Side)[2:]:
        value = getattr(side, field.name)
        if value == field.default:
            continue
        if field.name == "search":
            value = {SHRINK: "shrink", WIDE: "wide"}.get(value, ",".join(map(str, value)))
        words.append(f"{field.name}={value}" if value is not True else field.name)
    return " ".join(words)


def make(key: Side, value: Side, **windows) -> Format:
    extra = "".join(f" {name}={value_}" for name, value_ in windows.items() if name != "special")
    extra += " special" if "special" in windows else ""
    return Format(f"K[{describe(key)}] V[{describe(value)}]{extra}", key, value, **windows)


def steered(bits: int, **changes) -> Side:
    """Keys whose zero points and divisors are chosen by the prompt's queries."""
    return K("asymmetric", bits, **{**P8, "query_power": 0.25, "zero_search": 2 ** (6 - bits), **changes})


def anchored(bits: int) -> Side:
    """Values with the token of least norm on a code."""
    return V("asymmetric", bits, **P8, zero_search=1)


def key_sides(bits: int) -> list[Side]:
    s = [K("signed", bits), K("hybrid", bits, **P8), steered(bits), steered(bits, zero_search=4)]
    s += [steered(bits, power=p, query_power=q) for p, q in ((0.5, 0.0), (0.6, 0.2), (0.7, 0.3))]
    s += [K("hybrid", bits, **P8, power=p, query_power=q) for p, q in ((0.5, 0.25), (0.5, 0.5), (0.7, 0.3), (1, 0))]
    s += [K("signed", bits, feedback=1.0, damp=d) for d in (0.01, 0.1, 0.3, 1.0, 0.003)]
    s += [K("signed", bits, feedback=1.0, damp=0.1, order=o) for o in ("descending", "ascending")]
    s += [K("signed", bits, feedback=1.0, damp=0.1, power=p) for p in (0.0, 0.25, 0.75)]
    s += [K("asymmetric", bits, **E8), K("hybrid", bits, **E8), K("asymmetric", bits), K("hybrid", bits)]
    s += [K("asymmetric", bits, **E8, search=SHRINK), K("hybrid", bits, **E8, search=SHRINK)]
    s += [K("asymmetric", bits, **E8, feedback=1.0, damp=0.1), K("hybrid", bits, **E8, feedback=1.0, damp=0.1)]
    s += [K(m, bits, group=64, **E8, feedback=1.0, damp=0.1) for m in ("asymmetric", "hybrid")]
    s += [K("signed", bits, group=64, feedback=1.0, damp=0.1)]
    s += [K("signed", bits, group=64, feedback=1.0, damp=0.1, scale="e4m3")]
    s += [K("signed", bits, search=SHRINK), K("signed", bits, search=SHRINK, signs=True)]
    s += [K("signed", bits, search=WIDE, signs=True, weight="query")]
    s += [K("signed", bits, search=SHRINK, signs=True, feedback=1.0, damp=0.1)]
    s += [K("signed", bits, search=WIDE, signs=True, weight="query", feedback=1.0, damp=0.1)]
    s += [K("asymmetric", bits, **E8, search=WIDE, weight="query")]
    s += [K("asymmetric", bits, **E8, search=WIDE, weight="query", feedback=1.0, damp=0.1)]
    s += [K("signed", bits, search=(f,)) for f in (0.95, 0.9, 0.85, 1.05)]
    s += [K("signed", bits, refit="ls"), K("signed", bits, refit="unbiased")]
    s += [K("signed", bits, search=SHRINK, signs=True, refit="unbiased")]
    s += [K("asymmetric", bits, **E8, refit="ls"), K("asymmetric", bits, **E8, refit="unbiased")]
    s += [K("signed", bits, scale=k) for k in ("e4m3", "log8", "e5m2", "bfloat16", "exact")]
    s += [K("signed", bits, power=p) for p in (0.0, 0.25, 0.75, 1.0)]
    s += [K("signed", bits, pair=True), K("signed", bits, pair=True, feedback=1.0, damp=0.1)]
    s += [K("signed", bits, stat="rms", power=p) for p in (0.5, 0.75, 1.0)]
    s += [K("signed", bits, skip_sinks=True), K("signed", bits, centre="midrange")]
    s += [K("signed", bits, skip_sinks=True, centre="midrange"), K("signed", bits, centre=None)]
    s += [K("signed", bits, transform=t, power=p) for t in ("hadamard", "pca", "sort") for p in (0.0, 0.5)]
    s += [K("signed", bits, transform="balance", balance=b, power=0.0) for b in (0.5, 0.75, 1.0)]
    s += [K("signed", bits, transform="hadamard", power=0.0, feedback=1.0, damp=0.1)]
    s += [K("signed", bits, transform="balance", balance=0.5, power=0.0, feedback=1.0, damp=0.1)]
    s += [K("asymmetric", bits, **E8, transform="hadamard", power=0.0)]
    s += [K("signed", bits, group=g) for g in (16, 64)]
    s += [K("signed", bits, group=g, scale="e4m3") for g in (16, 64)]
    s += [K("signed", bits, group=64, transform="sort"), K("symmetric", bits), K("symmetric", bits, centre=None)]
    s += [K("asymmetric", bits, group=g, **E8) for g in (16, 64)]
    return s


def value_sides(bits: int) -> list[Side]:
    s = [V("signed", bits), V("hybrid", bits, **P8), V("asymmetric", bits, **P8), anchored(bits)]
    s += [V("signed", bits, feedback=f) for f in (0.03, 0.1, 0.3, 1.0)]
    s += [V("signed", bits, feedback="measured", damp=d) for d in (0.0, 0.1, 1.0)]
    s += [V("asymmetric", bits, **E8), V("hybrid", bits, **E8), V("asymmetric", bits), V("hybrid", bits)]
    s += [V("asymmetric", bits, **E8, search=SHRINK), V("hybrid", bits, **E8, search=SHRINK, signs=True)]
    s += [V("asymmetric", bits, **E8, search=WIDE, refit="ls"), V("hybrid", bits, **E8, search=WIDE, refit="ls")]
    s += [V("asymmetric", bits, **E8, refit="ls"), V("asymmetric", bits, **E8, refit="unbiased")]
    s += [V(m, bits, **E8, search=SHRINK, feedback=f) for m in ("asymmetric", "hybrid") for f in (0.1, 0.3)]
    s += [V("signed", bits, search=SHRINK), V("signed", bits, search=SHRINK, signs=True)]
    s += [V("signed", bits, search=WIDE, signs=True), V("signed", bits, search=SHRINK, signs=True, feedback=0.1)]
    s += [V("signed", bits, refit="ls"), V("signed", bits, refit="unbiased")]
    s += [V("signed", bits, search=(1.1, *SHRINK), signs=True, refit="unbiased")]
    s += [V("signed", bits, search=(f,)) for f in (0.95, 0.9, 0.85, 0.8, 1.05, 1.1)]
    s += [V("signed", bits, scale=k) for k in ("e4m3", "log8", "e5m2", "bfloat16", "exact")]
    s += [V(m, bits, group=64, **E8) for m in ("asymmetric", "hybrid")]
    s += [V(m, bits, group=64, **E8, search=SHRINK) for m in ("asymmetric", "hybrid")]
    s += [V(m, bits, group=128, **E8, search=SHRINK) for m in ("asymmetric", "hybrid")]
    s += [V(m, bits, group=16, **E8, search=SHRINK) for m in ("asymmetric", "hybrid")]
    s += [V("signed", bits, group=g) for g in (16, 64, 128)]
    s += [V("signed", bits, group=g, scale="e4m3") for g in (16, 64, 128)]
    s += [V("signed", bits, transform="hadamard"), V("asymmetric", bits, **E8, transform="hadamard")]
    s += [V("signed", bits, centre="mean"), V("hybrid", bits, **E8, search=SHRINK, centre="mean")]
    s += [V("symmetric", bits), V("symmetric", bits, search=SHRINK), V("paper_hybrid", bits)]
    return s


def combinations() -> list[Format]:
    """Candidates for presets."""
    made = []
    for kb, vb in ((3, 3), (3, 2), (4, 4), (2, 2), (4, 2), (4, 3), (2, 3)):
        plain, search8 = V("signed", vb), V("hybrid", vb, **E8, search=SHRINK)
        fed = K("signed", kb, feedback=1.0, damp=0.1)
        fed8 = K("asymmetric", kb, **E8, feedback=1.0, damp=0.1)
        made += [
            make(steered(kb), anchored(vb)),
            make(K("hybrid", kb, **P8), anchored(vb)),
            make(K("hybrid", kb, **P8, query_power=0.25), anchored(vb)),
            make(K("signed", kb), plain),
            make(fed, plain),
            make(fed8, search8),
            make(K("asymmetric", kb, **E8), V("asymmetric", vb, **E8, search=SHRINK)),
            make(
                K("asymmetric", kb, group=64, **E8, feedback=1.0, damp=0.1),
                V("hybrid", vb, group=64, **E8, search=SHRINK),
            ),
            make(fed, V("signed", vb, feedback=0.1)),
        ]
    return made


def windows() -> list[Format]:
    key, value = K("signed", 3), V("signed", 2)
    pairs = ((32, 96), (4, 96), (16, 96), (64, 96), (32, 32), (32, 64), (32, 128), (16, 64), (4, 128), (64, 64))
    return [make(key, value, sink=s, recent=r) for s, r in pairs]


def layered(layers: int) -> list[Format]:
    """Which layers are most sensitive: single layers and thirds exact, everything else 2/2."""
    key, value = K("signed", 2), V("signed", 2)
    made = []
    third = layers // 3
    parts = [
        ("first third", range(third)),
        ("middle third", range(third, 2 * third)),
        ("last third", range(2 * third, layers)),
    ]
    parts += [(f"layer {i}", [i]) for i in range(layers)]
    for what, which in parts:
        for side in ("K", "V"):
            special = ((tuple(which), NONE if side == "K" else key, NONE if side == "V" else value),)
            made.append(Format(f"2/2, {what} {side} exact", key, value, special=special))
    return made


def variants(layers: int) -> list[Format]:
    """All formats, in order of importance and with unique names."""
    made = known_formats() + combinations()
    made += [make(side, NONE) for side in key_sides(3)] + [make(NONE, side) for side in value_sides(2)]
    made += [make(side, NONE) for side in key_sides(2)] + [make(NONE, side) for side in value_sides(3)]
    made += windows()
    made += [make(side, NONE) for side in key_sides(4)] + [make(NONE, side) for side in value_sides(4)]
    made += layered(layers)
    return list({fmt.name: fmt for fmt in made}.values())
