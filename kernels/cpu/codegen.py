"""Generates the C++ source of the CPU kernels: the templates of ``*.h``, and a struct of constants per cache side.

What depends on the bit layout (``kernels/layout.py``) is derived here from ``layout.field_bits`` and from the
permutation of ``layout._to_fields``, and generated as members of the struct: tables for packing, straight-line code for
unpacking. The C++ templates depend only on the order of words, ``[hi, half, column / RUN, lane pair, column % RUN]``.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import torch

from .. import layout, scale_types
from ..formats import CacheFormat
from ..modes import QuantizationMode, rounding

#: Names of element and scale dtypes in ``vec.h``.
CPP_TYPES = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "f16"}
CPP_SCALES = {"float32": "float", "bfloat16": "bf16", "float16": "f16", "float8_e5m2": "e5m2", "pair8": "pair8"}


@dataclasses.dataclass(frozen=True)
class Side:
    """What the code for a cache side depends on: its format (but not windows, norm and zeros), head_dim and dtype."""

    fmt: CacheFormat
    head_dim: int
    dtype: torch.dtype

    @staticmethod
    @functools.cache
    def of(fmt: CacheFormat, head_dim: int, dtype: torch.dtype) -> Side:
        """The side of a cache of this format, head_dim and dtype: formats for which the code is the same give one."""
        fmt = dataclasses.replace(fmt, sink=0, recent=0, norm="channel", zeros=0)
        if not fmt.quantized:  # not used by a lossless format
            fmt = dataclasses.replace(fmt, bits=8, scale_dtype="float32")
        return Side(fmt, head_dim, dtype)


@functools.cache
def field_runs(bits: int) -> tuple[tuple[tuple[int, int, int, int], ...], ...]:
    """For each field, its runs of bits that are within one half: ``(half, half_bit, code_bit, mask)``."""
    fields = []
    for places in layout.field_bits(bits):
        runs: list[tuple[int, int, int, int]] = []
        for code_bit, (half, half_bit) in enumerate(places):
            last = runs[-1] if runs else None
            if last and last[0] == half and half_bit - code_bit == last[1] - last[2]:
                runs[-1] = (*last[:3], last[3] << 1 | 1)
            else:
                runs.append((half, half_bit, code_bit, 1))
        fields.append(tuple(runs))
    return tuple(fields)


def _tile_permutation(side: Side) -> torch.Tensor:
    """Index of each code ``[hi, pair, column, half, field]`` in a tile: keys ``[D, 32]``, values ``[block, D]``."""
    fmt, head_dim = side.fmt, side.head_dim
    token, channel = torch.arange(fmt.block)[:, None], torch.arange(head_dim)
    place = channel * fmt.block + token if fmt.is_key else token * head_dim + channel
    return layout._to_fields(place[None], fmt)[0]


def _stride(places: torch.Tensor, axis: int) -> int:
    """The constant difference of ``places`` along an axis; 0 if the axis has one element."""
    if places.shape[axis] == 1:
        return 0
    steps = places.diff(dim=axis).unique().tolist()
    if len(steps) != 1:
        raise NotImplementedError("the bit layout is not affine in columns and lane pairs")
    return steps[0]


def _int_list(values) -> str:
    return ", ".join(str(v) for v in values)


def _unpack_lines(
    base: list[list[int]], columns: int, pairs: int, step: int, row: int, bits: int, lanes: int
) -> list[str]:
    """Statements that unpack the words of one lane pair into ``tile``; ``words`` points to the first of them.

    Args:
        base: index in the tile of ``[half-word][field]`` of column 0.
        columns: columns of a plane.
        pairs: lane pairs.
        step: difference of the index from column to column.
        row: lanes in a row of the tile.
        bits: bits of a code.
        lanes: lanes of a vector.
    """
    source = {
        base[half][field] + column * step: (column, half, field)
        for half in range(2)
        for field in range(16)
        for column in range(columns)
    }
    width = layout.column_run(columns)
    lines: list[str] = []
    loaded: dict[tuple[int, tuple[int, ...]], str] = {}

    def words(half: int, index: tuple[int, ...]) -> str:
        """Name of a variable that holds the words of columns ``index`` of one half."""
        if (half, index) not in loaded:
            name = f"w{len(loaded)}"
            plane, run = layout.plane_words(columns), layout.plane_words(width)
            offsets = [half * plane + i // width * run + i % width for i in index]
            first = min(offsets)
            second = min((at for at in offsets if at >= first + lanes), default=None)
            value = f"load_words(words + {first})"
            if second is not None:  # another run of columns
                assert max(offsets) < second + lanes
                picks = [at - first if at < first + lanes else lanes + at - second for at in offsets]
                value = f"SHUFFLE({value}, load_words(words + {second}), {_int_list(picks)})"
            elif offsets != list(range(first, first + lanes)):
                value = f"SHUFFLE({value}, {value}, {_int_list(at - first for at in offsets)})"
            lines.append(f"const VU {name} = {value};")
            loaded[half, index] = name
        return loaded[half, index]

    for place in range(min(source), max(source) + 1, lanes):
        if place not in source:  # rows of other lane pairs
            continue
        codes = [source[place + i] for i in range(lanes)]
        index = tuple(column for column, _, _ in codes)
        terms = []
        for half in range(bits):
            shifts, masks = [], []
            for _, high, field in codes:
                run = next((r for r in field_runs(bits)[field] if r[0] == half), None)
                shifts.append(run[1] - run[2] + 16 * high if run else 0)
                masks.append(run[3] << run[2] if run else 0)
            if not any(masks):
                continue
            if len(set(shifts)) == 1:
                term = f"({words(half, index)} >> {shifts[0]})" if shifts[0] else words(half, index)
            else:
                term = f"({words(half, index)} >> VU{{{_int_list(shifts)}}})"
            if len(set(masks)) > 1:
                term = f"({term} & VU{{{_int_list(masks)}}})"
            elif len(set(shifts)) > 1 or (0xFFFFFFFF >> shifts[0]) & ~masks[0]:
                term = f"({term} & {masks[0]}u)"
            terms.append(term)
        assert place // row == (place + lanes - 1) // row
        lines.append(f"store(tile + {place}, to_float({' | '.join(terms)}));")
    return lines


@functools.cache
def side_struct(side: Side, name: str, lanes: int) -> str:
    """The struct ``name`` of the constants of one side, for vectors of ``lanes`` floats. See ``cache.h``."""
    fmt, head_dim, mode = side.fmt, side.head_dim, side.fmt.quantization
    rows, row = (head_dim, fmt.block) if fmt.is_key else (fmt.block, head_dim)
    constants = {
        "D": head_dim,
        "BLOCK": fmt.block,
        "ROWS": rows,
        "LANES": row,
        "GS": fmt.group_size,
        "BITS": fmt.bits,
        "OFFSET": fmt.code_offset,
        "GROUPS": layout.groups_per_block(fmt, head_dim),
        "WORDS": layout.words_per_block(fmt, head_dim) if fmt.quantized else 0,
        "PARAMS": layout.scales_per_block(fmt, head_dim),
    }
    body = [
        f"using T = {CPP_TYPES[side.dtype]};",
        f"using S = {CPP_SCALES[fmt.scale_dtype]};",
        f"static constexpr bool KEY = {int(fmt.is_key)}, QUANTIZED = {int(fmt.quantized)}, "
        f"ROLLS = {int(fmt.rolls)}, HAS_ZERO = {int(fmt.has_zero)}, USES_ANCHOR = {int(mode.uses_anchor)}, "
        f"USES_QUERIES = {int(mode.uses_queries)};",
        f"static constexpr int {', '.join(f'{key} = {value}' for key, value in constants.items())};",
    ]
    if fmt.quantized:
        body += [
            f"using Mode = {mode.cpp_encoder};",
            f"static constexpr float ZERO_STEP = {scale_types.zero_step(fmt.bits)!r}f;",
            *(f"static constexpr {name} = {value};" for name, value in mode.cpp_constants(fmt).items()),
        ]
        place = _tile_permutation(side)
        hi, pairs, columns = place.shape[:3]
        base = place[0, 0, 0].tolist()
        hi_step, pair_step, step = (_stride(place, axis) for axis in range(3))
        run = layout.column_run(columns)
        runs = [f"{{{field}, {{{_int_list(r)}}}}}" for field, rs in enumerate(field_runs(fmt.bits)) for r in rs]
        lines = _unpack_lines(base, columns, pairs, step, row, fmt.bits, lanes)
        body += [
            f"static constexpr int HI = {hi}, PAIRS = {pairs}, COLS = {columns}, RUN = {run};",
            f"static constexpr int PLANE_WORDS = {layout.plane_words(columns)}, RUN_WORDS = {layout.plane_words(run)};",
            f"static constexpr int HI_STRIDE = {hi_step}, PAIR_STRIDE = {pair_step}, COL_STRIDE = {step};",
            f"static constexpr int BASE[2][16] = {{{', '.join('{' + _int_list(b) + '}' for b in base)}}};",
            f"static constexpr FieldRun RUNS[] = {{{', '.join(runs)}}};",
            "__attribute__((noinline)) static void unpack(const int32_t* block_words, float* block) {",
            "  for (int hi = 0; hi < HI; ++hi)",
            "    for (int pair = 0; pair < PAIRS; ++pair) {",
            "      const int32_t* words = block_words + hi * (BITS * PLANE_WORDS) + pair * RUN;",
            "      float* tile = block + hi * HI_STRIDE + pair * PAIR_STRIDE;",
            *(f"      {line}" for line in lines),
            "    }",
            "}",
        ]
    return "\n".join([f"struct {name} {{", *(f"  {line}" for line in body), "};"])


#: The templates around the encoders of modes, in the order of their use.
_BEFORE_MODES = ("vec.h", "cache.h", "modes/groups.h", "modes/affine.h", "modes/paired.h")
_BEHIND_MODES = ("encode.h", "append.h", "prefill.h", "contract.h", "tokens.h", "masks.h", "decode.h")


@functools.cache
def _header(name: str) -> str:
    return (pathlib.Path(__file__).parent / name).read_text()


def _headers(modes: list[QuantizationMode]) -> list[str]:
    """The text of the templates, with the encoders of ``modes`` only."""
    encoders = sorted({f"modes/{mode.name}.h" for mode in modes if mode.cpp_encoder})
    return [_header(name) for name in (*_BEFORE_MODES, *encoders, *_BEHIND_MODES)]


def _constants() -> list[str]:
    """Constants of all sides, from ``layout.py``, ``scale_types.py`` and ``modes/rounding.py``."""
    pair, byte = scale_types.PAIR, scale_types.FLOAT8
    numbers = {
        "FLOAT32_LARGEST": scale_types.SCALE_TYPES["float32"].largest,
        "BFLOAT16_LARGEST": scale_types.SCALE_TYPES["bfloat16"].largest,
        "FLOAT16_LARGEST": scale_types.SCALE_TYPES["float16"].largest,
        "PAIR_LARGEST": pair.largest,
        "PAIR_QUANTUM": 2.0**-pair.mantissa_bits,
        "FLOAT8_LARGEST": byte.largest,
        "FLOAT8_QUANTUM": 2.0**-byte.mantissa_bits,
        "SMALLEST_NORMAL": scale_types.SMALLEST_NORMAL,
        "CLEARLY": rounding.CLEARLY,
    }
    whole = {
        "STATE_SIZE": len(layout.STATE_FIELDS),
        "START": layout.START,
        "LENGTH": layout.LENGTH,
        "PEAK": layout.PEAK,
        "HIDDEN": layout.HIDDEN,
        "PAIR_SCALE": scale_types.PAIR_SCALE,
        "PAIR_STEPS": scale_types.PAIR_STEPS,
        "PAIR_SIGN": scale_types.PAIR_SIGN,
        "MOST_STEPS": scale_types.MOST_STEPS,
        "NEAREST_BITS": scale_types.NEAREST_BITS,
    }
    lines = [f"constexpr float {name} = {value!r}f;" for name, value in numbers.items()]
    return ["namespace {", *lines, *(f"constexpr int {name} = {value};" for name, value in whole.items()), "}"]


def source(singles: list[Side], pairs: list[tuple[Side, Side]], lanes: int) -> str:
    """One C++ file with the entry points of the given sides and pairs of sides, numbered in order.

    ``append_side_<i>`` and ``prefill_<i>`` for a side; ``append_pair_<i>`` and ``decode_<i>`` for a pair.
    """
    numbers: dict[Side, str] = {}
    for side in (*singles, *(side for pair in pairs for side in pair)):
        numbers.setdefault(side, f"Side{len(numbers)}")
    out = [f"#define VL {lanes}", *_constants(), *_headers([side.fmt.quantization for side in numbers]), "namespace {"]
    out += [side_struct(side, name, lanes) for side, name in numbers.items()]
    out += ["}  // namespace", 'extern "C" {']
    for i, side in enumerate(singles):
        name = numbers[side]
        out.append(f"int append_side_{i}(const AppendArgs* a) {{ return append_side<{name}>(*a, a->side[0]); }}")
        out.append(f"int prefill_{i}(const PrefillArgs* a) {{ return prefill<{name}>(a); }}")
    for i, (key, value) in enumerate(pairs):
        names = f"{numbers[key]}, {numbers[value]}"
        out.append(f"int append_pair_{i}(const AppendArgs* a) {{ return append_pair<{names}>(a); }}")
        out.append(f"int decode_{i}(const DecodeArgs* a) {{ return decode<{names}, {CPP_TYPES[key.dtype]}>(a); }}")
    out.append('}  // extern "C"')
    return "\n".join(out) + "\n"
