"""Strips of an image in registers, for the state fusion's kernels. Importing this imports Triton.

A strip is a tuple of ROWS tensors (COLUMNS, CHANNELS), or of more rows where taps reach above and
below it. Taps come by columns: REACH (1, 3 or 5) to the left (side 0) or right (side 1) there are
three, at rows -REACH, 0 and REACH; the pixel's own column has seven. Their numbers are positions in
:data:`rsmamba_kernels.state_fusion.taps.TAPS`.
"""

import triton
import triton.language as tl

from rsmamba_kernels.triton_math import widen

#: Rows and columns that the taps reach.
MARGIN: tl.constexpr = tl.constexpr(5)


@triton.jit
def zeros(COUNT: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """COUNT rows of zeros."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros([COLUMNS, CHANNELS], tl.float32),)
    return rows


@triton.jit
def nearest_rows(top, height, row_size, ROWS: tl.constexpr):
    """Where the rows of a strip and its margin start; of those outside, the nearest row."""
    starts = ()
    for i in tl.static_range(-MARGIN, ROWS + MARGIN):
        starts = starts + (tl.minimum(tl.maximum(top + i, 0), height - 1) * row_size,)
    return starts


@triton.jit
def nearest_column(column, width, exists):
    """The nearest column, and where it is the one that is meant and exists."""
    nearest = tl.minimum(tl.maximum(column, 0), width - 1)
    return nearest, exists & (nearest == column)


@triton.jit
def load_strip(
    pointers,
    starts,
    top,
    height,
    inside,
    has_channel,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    ZEROS: tl.constexpr,
    FULL: tl.constexpr,
):
    """The rows of a strip and REACH more on both sides in float32.

    Args:
        pointers: (COLUMNS, CHANNELS) to row 0.
        starts: What :func:`nearest_rows` returned.
        top: First row of the strip.
        height: Rows of the image.
        inside: (COLUMNS, 1) what has values with ZEROS.
        has_channel: (1, CHANNELS) which exist; all do with FULL.
        REACH: Rows above and below.
        ROWS: Rows of the strip.
        ZEROS: Whether the margin holds zeros, else what the pointers and starts lead to.
        FULL: Whether nothing needs a mask for its channel.
    """
    rows = ()
    for i in tl.static_range(-REACH, ROWS + REACH):
        at = pointers + starts[i + MARGIN]
        if ZEROS:
            here = inside & (top + i >= 0) & (top + i < height) & has_channel
            rows = rows + (widen(tl.load(at, mask=here, other=0.0)),)
        elif FULL:
            rows = rows + (widen(tl.load(at)),)
        else:
            rows = rows + (widen(tl.load(at, mask=has_channel, other=0.0)),)
    return rows


@triton.jit
def load_gradients(
    dy,
    C,
    starts,
    dy_row,
    C_row,
    top,
    height,
    inside,
    has_channel,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
):
    """C * dy of such rows, zero outside the image; ``starts`` are numbers of rows.

    Args:
        dy: (COLUMNS, CHANNELS) pointers to row 0.
        C: (COLUMNS, 1) pointers to row 0.
        starts: Numbers of the rows, by :func:`nearest_rows`.
        dy_row: Elements from row to row.
        C_row: Elements from row to row.
        top: First row of the strip.
        height: Rows of the image.
        inside: (COLUMNS, 1) which are in the image.
        has_channel: (1, CHANNELS) which exist; all do with FULL.
        REACH: Rows above and below.
        ROWS: Rows of the strip.
        FULL: Whether nothing needs a mask for its channel.
    """
    rows = ()
    for i in tl.static_range(-REACH, ROWS + REACH):
        here = inside & (top + i >= 0) & (top + i < height)
        weight = widen(tl.load(C + starts[i + MARGIN] * C_row, mask=here, other=0.0))
        # Outside the image the weight is zero and the value the nearest pixel's.
        at = dy + starts[i + MARGIN] * dy_row
        if FULL:
            value = widen(tl.load(at))
        else:
            value = widen(tl.load(at, mask=has_channel, other=0.0))
        rows = rows + (weight * value,)
    return rows


@triton.jit
def load_tap(taps, number, channels, exists):
    """(1, CHANNELS) weights."""
    return tl.load(taps + number * channels, mask=exists, other=0.0)


@triton.jit
def side_numbers(side, REACH: tl.constexpr):
    """Numbers of the taps at rows -REACH, 0, REACH, in the column REACH to that side."""
    ring: tl.constexpr = (MARGIN - REACH) // 2
    return 3 * ring + 2 * side, 9 + ring + (6 - 2 * ring) * side, 22 - 3 * ring + 2 * side


@triton.jit
def load_side(taps, channels, exists, side, REACH: tl.constexpr):
    """Weights of the taps at rows -REACH, 0, REACH, in the column REACH to that side."""
    above, level, below = side_numbers(side, REACH)
    return (
        load_tap(taps, above, channels, exists),
        load_tap(taps, level, channels, exists),
        load_tap(taps, below, channels, exists),
    )


@triton.jit
def load_outward(taps, channels, exists, column, width, REACH: tl.constexpr):
    """(COLUMNS, CHANNELS) weights of the taps that point out of an image of its border column."""
    above, level, below = load_side(taps, channels, exists & (column == 0), 0, REACH)
    last = exists & (column == width - 1)
    last_above, last_level, last_below = load_side(taps, channels, last, 1, REACH)
    return above + last_above, level + last_level, below + last_below


@triton.jit
def load_own(taps, channels, exists):
    """Weights of the taps at rows -5, -3, -1, 0, 1, 3, 5 of the pixel's own column."""
    return (
        load_tap(taps, 1, channels, exists),
        load_tap(taps, 4, channels, exists),
        load_tap(taps, 7, channels, exists),
        load_tap(taps, 12, channels, exists),
        load_tap(taps, 17, channels, exists),
        load_tap(taps, 20, channels, exists),
        load_tap(taps, 23, channels, exists),
    )


@triton.jit
def convolve(sums, rows, tap, SHIFT: tl.constexpr, REACH: tl.constexpr):
    """Add to the sum of each row of the strip the tap times the row SHIFT further down."""
    more = ()
    for i in tl.static_range(len(sums)):
        more = more + (sums[i] + tap * rows[i + REACH + SHIFT],)
    return more


@triton.jit
def correlate(left, right, SHIFT: tl.constexpr, REACH: tl.constexpr):
    """Sum of the products of a strip's rows with the rows SHIFT further down."""
    total = left[0] * right[REACH + SHIFT]
    for i in tl.static_range(1, len(left)):
        total += left[i] * right[i + REACH + SHIFT]
    return total


@triton.jit
def _add(sums, AT: tl.constexpr, tap, value):
    return sums[:AT] + (sums[AT] + tap * value,) + sums[AT + 1 :]


@triton.jit
def scatter(
    sums,
    rows,
    tap,
    SHIFT: tl.constexpr,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    FOLD: tl.constexpr,
):
    """Add the tap times each row to the sum SHIFT further down: the transpose of a convolution.

    Of ROWS + 2 sums the last two collect, with FOLD, what the strip's own rows leave above and
    below it.
    """
    for i in tl.static_range(-REACH, ROWS + REACH):
        if i + SHIFT >= 0 and i + SHIFT < ROWS:
            sums = _add(sums, i + SHIFT, tap, rows[i + REACH])
        elif FOLD and i >= 0 and i + SHIFT < 0:
            sums = _add(sums, ROWS, tap, rows[i + REACH])
        elif FOLD and i < ROWS and i + SHIFT >= ROWS:
            sums = _add(sums, ROWS + 1, tap, rows[i + REACH])
    return sums


@triton.jit
def store_strip(
    pointers, row_size, sums, top, height, exists, ROWS: tl.constexpr, FOLD: tl.constexpr
):
    """Write what :func:`scatter` summed; what is beyond the image goes to the first or last row."""
    below = sums[ROWS + 1]
    if FOLD:
        for i in tl.static_range(ROWS):
            below += tl.where(top + i >= height, sums[i], 0.0)
    for i in tl.static_range(ROWS):
        out = sums[i]
        if FOLD:
            out += tl.where(top + i == height - 1, below, 0.0)
            if i == 0:
                out += tl.where(top == 0, sums[ROWS], 0.0)
        tl.store(pointers + (top + i) * row_size, out, mask=exists & (top + i < height))


@triton.jit
def add_partials(partial, channels, has_channel, more, a, b, c, d, at_a, at_b, at_c, at_d):
    """Sum four (COLUMNS, CHANNELS) tensors over their columns, and add them to (., D) partials.

    Four at a time wait for each other's threads a quarter as often.

    Args:
        partial: (CHANNELS, 1, 1) pointers to row 0 of the partials.
        channels: D.
        has_channel: (CHANNELS, 1, 1) which exist.
        more: Whether the rows hold anything yet.
        a: To be summed, like b, c, d.
        b: Second.
        c: Third.
        d: Fourth.
        at_a: Row of its sum, -1 for no sum, like the others.
        at_b: Second.
        at_c: Third.
        at_d: Fourth.
    """
    totals = tl.sum(tl.join(tl.join(a, b), tl.join(c, d)), axis=0)
    pair = tl.arange(0, 2)
    first = tl.where(pair == 0, at_a, at_b)[None, :, None]
    second = tl.where(pair == 0, at_c, at_d)[None, :, None]
    row = tl.where(pair[None, None, :] == 0, first, second)
    at = partial + row * channels
    totals += tl.load(at, mask=has_channel & (row >= 0) & more, other=0.0)
    tl.store(at, totals, mask=has_channel & (row >= 0))
