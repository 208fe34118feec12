"""Tokens of keys and channels of values as the rows of accumulators, 16 or 32 to a tile: in which order, and back.

A row tile has the columns of one field, or with 8 columns a plane those of two fields, half of all columns apart:

* fewer than 8 columns (keys): the columns of several fields, in order;
* 8 columns: row ``(half, c)`` of 2, 8;
* more: row ``(i, c)`` of 2, 8 in each 16 columns is column ``(c, i)``, see ``operands.load_planes``.

Planes of values with another number of columns than 8, 16 and 32 have rows of dead columns up to the next of these.

Tiles are stacked to tensors with the rows of all of them, so that one multiplication meets all scales.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def padded_columns(cols):
    """Columns of a plane of values with the dead ones: 8, 16 or 32."""
    return 8 if cols <= 8 else 16 if cols <= 16 else 32


@triton.constexpr_function
def tile_rows(cols):
    """Rows of a tile: 16 or 32."""
    return 16 if cols <= 16 else 32


@triton.constexpr_function
def value_rows(cols):
    """Rows of all tiles of values, dead ones among them: those of the 8 sub-ranges of channels."""
    return 8 * padded_columns(cols)


@triton.jit
def pair_up(tiles):
    """Tensors ``[...]`` in pairs ``[..., 2]``: half as many."""
    new = ()
    for i in tl.static_range(len(tiles) // 2):
        new = new + (tl.join(tiles[2 * i], tiles[2 * i + 1]),)
    return new


@triton.jit
def stack(tiles):
    """1, 2, 4, 8, 16 or 32 tensors ``[R, C]`` under one another, ``[count * R, C]``. Registers are only renamed."""
    COUNT: tl.constexpr = len(tiles)
    ROWS: tl.constexpr = tiles[0].shape[0]
    COLS: tl.constexpr = tiles[0].shape[1]
    if COUNT == 1:
        return tiles[0]
    elif COUNT == 2:
        b_all = tl.permute(pair_up(tiles)[0], (2, 0, 1))
    elif COUNT == 4:
        b_all = tl.permute(pair_up(pair_up(tiles))[0], (3, 2, 0, 1))
    elif COUNT == 8:
        b_all = tl.permute(pair_up(pair_up(pair_up(tiles)))[0], (4, 3, 2, 0, 1))
    elif COUNT == 16:
        b_all = tl.permute(pair_up(pair_up(pair_up(pair_up(tiles))))[0], (5, 4, 3, 2, 0, 1))
    else:
        b_all = tl.permute(pair_up(pair_up(pair_up(pair_up(pair_up(tiles)))))[0], (6, 5, 4, 3, 2, 0, 1))
    return tl.reshape(b_all, (COUNT * ROWS, COLS))


@triton.jit
def row_order(b_x, COLS: tl.constexpr):
    """A vector over the columns of planes (any number of tokens or channels) in the order of stacked row tiles."""
    SIZE: tl.constexpr = b_x.shape[0]
    if COLS == 8:
        b_x = tl.permute(tl.reshape(b_x, (2, SIZE // 16, 8)), (1, 0, 2))
    else:
        b_x = tl.permute(tl.reshape(b_x, (SIZE // 16, 8, 2)), (0, 2, 1))
    return tl.reshape(b_x, (SIZE,))


@triton.jit
def key_row_order(b_x, GROUPS: tl.constexpr, COLS: tl.constexpr):
    """A vector ``[groups * 32 tokens]`` in the order of a group's row tiles of tokens, then the next group's."""
    if COLS < 8:
        return b_x
    elif COLS == 8:
        b_x = tl.permute(tl.reshape(b_x, (GROUPS, 2, 2, 8)), (0, 2, 1, 3))
        return tl.reshape(b_x, (GROUPS * 32,))
    else:
        return row_order(b_x, COLS)


@triton.jit
def row_tokens(COLS: tl.constexpr):
    """The token of each of the 32 rows of a block of keys, ``[32]``."""
    row = tl.arange(0, 32)
    if COLS < 8:
        return row
    elif COLS == 8:  # rows (tile, half, c)
        return row // 8 % 2 * 16 + row // 16 * 8 + row % 8
    else:
        return columns_of_rows(row, 32)


@triton.jit
def columns_of_rows(row, COLS: tl.constexpr):
    """The columns of rows of a plane of 8, 16 or 32 columns: row (16 columns, i, c) is column (16 columns, c, i)."""
    if COLS == 8:
        return row
    else:
        return row // 16 * 16 + row % 8 * 2 + row // 8 % 2


@triton.jit
def row_channels(COLS: tl.constexpr):
    """The channel of each row of values, and whether it has one, which dead rows have not: both ``[value_rows]``."""
    WIDTH: tl.constexpr = padded_columns(COLS)
    row = tl.arange(0, value_rows(COLS))
    sub = row // 8 % 2 * 4 + row // 16 if WIDTH == 8 else row // WIDTH  # rows (tile, half, c) if it is
    column = columns_of_rows(row % WIDTH, WIDTH)
    return sub * COLS + column, column < COLS


@triton.jit
def token_slices(b_p, COLS: tl.constexpr):
    """Rows ``[32, HEADS]`` of a block of keys as two slices ``[16 tokens, HEADS]``, tokens in their own order."""
    HEADS: tl.constexpr = b_p.shape[1]
    if COLS < 8:  # rows (slice, token)
        b_all = tl.permute(tl.reshape(b_p, (2, 16, HEADS)), (1, 2, 0))
    elif COLS == 8:  # rows (tile, slice, c)
        b_all = tl.permute(tl.reshape(b_p, (2, 2, 8, HEADS)), (0, 2, 3, 1))
    else:  # rows (slice, i, c)
        b_all = tl.permute(tl.reshape(b_p, (2, 2, 8, HEADS)), (2, 1, 3, 0))
    return tl.split(tl.reshape(b_all, (16, HEADS, 2)))
