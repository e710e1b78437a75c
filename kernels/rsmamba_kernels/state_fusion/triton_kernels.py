"""The state fusion in Triton. Importing this imports Triton: do it where it is used.

A program takes COLUMNS image columns (of any images) and CHANNELS channels, and walks down the
rows in strips of ROWS. The 25 taps lie in seven columns: the values of a strip in one of these
are loaded once and serve all its taps and all rows of the strip, from registers. The margin is
never stored: the nearest pixel is loaded instead, or zero.

Two things keep the compiler from loading everything at once, for which there are not enough
registers. ``tl.minimum(top, 0)``, always zero, ties the taps to the strip. The loops over ``side``
have two turns, but how many is not known before the kernel runs.
"""

import triton
import triton.language as tl

from rsmamba_kernels.state_fusion.triton_strips import (
    MARGIN,
    add_partials,
    convolve,
    correlate,
    load_gradients,
    load_outward,
    load_own,
    load_side,
    load_strip,
    nearest_column,
    nearest_rows,
    scatter,
    side_numbers,
    store_strip,
    zeros,
)
from rsmamba_kernels.triton_math import widen


@triton.jit
def state_fusion_forward(
    h,
    x,
    C,
    D,
    taps,
    y,
    images,
    height,
    width,
    channels,
    rows,
    h_image,
    h_pixel,
    x_image,
    x_pixel,
    C_image,
    C_pixel,
    ZEROS: tl.constexpr,
    FULL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Programs: (blocks of channels, blocks of columns, blocks of ``rows`` rows)."""
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[:, None]
    has_channel, exists = channel < channels, column < images * width
    column = tl.minimum(column, images * width - 1)
    image = (column // width).to(tl.int64)
    column = column % width
    skip = tl.load(D + channel, mask=has_channel, other=0.0)
    h += image * h_image + channel
    x += image * x_image + column * x_pixel + channel
    C += image * C_image + column * C_pixel
    y += (image * height * width + column) * channels + channel
    begin = tl.program_id(2) * rows
    for top in range(begin, tl.minimum(begin + rows, height), ROWS):
        here = taps + channel + tl.minimum(top, 0) * channels
        starts = nearest_rows(top, height, width * h_pixel, ROWS)
        fused = zeros(ROWS, COLUMNS, CHANNELS)
        for ring in tl.static_range(3):
            for side in range(0, 1 + tl.minimum(width, 1)):
                shift = (1 + 2 * ring) * (2 * side - 1)
                nearest, inside = nearest_column(column + shift, width, exists)
                values = load_strip(
                    h + nearest * h_pixel,
                    starts,
                    top,
                    height,
                    inside,
                    has_channel,
                    1 + 2 * ring,
                    ROWS,
                    ZEROS,
                    FULL,
                )
                above, level, below = load_side(here, channels, has_channel, side, 1 + 2 * ring)
                fused = convolve(fused, values, above, -1 - 2 * ring, 1 + 2 * ring)
                fused = convolve(fused, values, level, 0, 1 + 2 * ring)
                fused = convolve(fused, values, below, 1 + 2 * ring, 1 + 2 * ring)
        at = h + column * h_pixel
        own = load_strip(at, starts, top, height, exists, has_channel, MARGIN, ROWS, ZEROS, FULL)
        tap = load_own(here, channels, has_channel)
        for k in tl.static_range(3):
            fused = convolve(fused, own, tap[k], 2 * k - 5, MARGIN)
            fused = convolve(fused, own, tap[6 - k], 5 - 2 * k, MARGIN)
        fused = convolve(fused, own, tap[3], 0, MARGIN)
        for i in tl.static_range(ROWS):
            at = (top + i) * width
            weight = widen(tl.load(C + at * C_pixel, mask=top + i < height, other=0.0))
            valid = exists & has_channel & (top + i < height)
            value = widen(tl.load(x + at * x_pixel, mask=valid, other=0.0))
            tl.store(y + at * channels, weight * fused[i] + skip * value, mask=valid)


@triton.jit
def state_fusion_backward_states(
    dy,
    C,
    taps,
    dh,
    images,
    height,
    width,
    channels,
    rows,
    C_image,
    C_pixel,
    ZEROS: tl.constexpr,
    BORDER: tl.constexpr,
    FULL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of the states, the transpose of the forward; programs as there.

    With zeros outside: the flipped taps over the gradient. With the nearest pixel outside, what
    they leave on the margin belongs to the border. Rows beyond the image are folded back from the
    sums of a strip. Columns are not: the first and the last one of the images, BORDER, are a
    launch of their own, where a tap that points outwards meets all gradients within its reach.
    """
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[:, None]
    count = width
    if BORDER:
        count = tl.minimum(width, 2)
    elif not ZEROS:
        count = width - 2
    has_channel, exists = channel < channels, column < images * count
    column = tl.minimum(column, images * count - 1)
    image = (column // count).to(tl.int64)
    column = column % count
    if BORDER:
        column = column * (width - 1)
    elif not ZEROS:
        column = column + 1
    dy += image * height * width * channels + channel
    dh += (image * height * width + column) * channels + channel
    C += image * C_image
    inwards = tl.where(column == 0, 1, -1)
    begin = tl.program_id(2) * rows
    for top in range(begin, tl.minimum(begin + rows, height), ROWS):
        here = taps + channel + tl.minimum(top, 0) * channels
        starts = nearest_rows(top, height, width, ROWS)
        sums = zeros(ROWS + 2, COLUMNS, CHANNELS)
        for ring in tl.static_range(3):
            # One side and the other, or for the border column by column inwards.
            turns = 1 + tl.minimum(width, 1)
            if BORDER:
                turns = tl.minimum(width, 2 + 2 * ring)
            for turn in range(0, turns):
                if BORDER:
                    source = column + inwards * turn
                    a, b, c = load_outward(here, channels, has_channel, column, width, 1 + 2 * ring)
                else:
                    source = column - (1 + 2 * ring) * (2 * turn - 1)
                    a, b, c = load_side(here, channels, has_channel, turn, 1 + 2 * ring)
                nearest, inside = nearest_column(source, width, exists)
                values = load_gradients(
                    dy + nearest * channels,
                    C + nearest * C_pixel,
                    starts,
                    channels,
                    C_pixel,
                    top,
                    height,
                    inside,
                    has_channel,
                    1 + 2 * ring,
                    ROWS,
                    FULL,
                )
                sums = scatter(sums, values, a, -1 - 2 * ring, 1 + 2 * ring, ROWS, not ZEROS)
                sums = scatter(sums, values, b, 0, 1 + 2 * ring, ROWS, not ZEROS)
                sums = scatter(sums, values, c, 1 + 2 * ring, 1 + 2 * ring, ROWS, not ZEROS)
        own = load_gradients(
            dy + column * channels,
            C + column * C_pixel,
            starts,
            channels,
            C_pixel,
            top,
            height,
            exists,
            has_channel,
            MARGIN,
            ROWS,
            FULL,
        )
        tap = load_own(here, channels, has_channel)
        for k in tl.static_range(3):
            sums = scatter(sums, own, tap[k], 2 * k - 5, MARGIN, ROWS, not ZEROS)
            sums = scatter(sums, own, tap[6 - k], 5 - 2 * k, MARGIN, ROWS, not ZEROS)
        sums = scatter(sums, own, tap[3], 0, MARGIN, ROWS, not ZEROS)
        valid = exists & has_channel
        store_strip(dh, width * channels, sums, top, height, valid, ROWS, not ZEROS)


@triton.jit
def state_fusion_backward_weights(
    dy,
    h,
    x,
    C,
    D,
    taps,
    dx,
    dC,
    sums,
    images,
    height,
    width,
    channels,
    rows,
    h_image,
    h_pixel,
    x_image,
    x_pixel,
    C_image,
    C_pixel,
    ZEROS: tl.constexpr,
    FULL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """All other gradients; programs as in the forward.

    ``dC`` is a sum per block of channels, (blocks, pixels of all images). ``sums`` has a row for
    each of the 25 taps and one for D, per program of the same channels: (programs, 26, D).
    """
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[:, None]
    has_channel, exists = channel < channels, column < images * width
    column = tl.minimum(column, images * width - 1)
    image = (column // width).to(tl.int64)
    column = column % width
    skip = tl.load(D + channel, mask=has_channel, other=0.0)
    h += image * h_image + channel
    x += image * x_image + column * x_pixel + channel
    C += image * C_image + column * C_pixel
    pixel = image * height * width + column
    dy += pixel * channels + channel
    dx += pixel * channels + channel
    dC += tl.program_id(0).to(tl.int64) * images * height * width + pixel
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    axis = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[:, None, None]
    sums += program.to(tl.int64) * 26 * channels + axis
    begin = tl.program_id(2) * rows
    for top in range(begin, tl.minimum(begin + rows, height), ROWS):
        # Other threads may have written what this strip adds to.
        tl.debug_barrier()
        more = top > begin
        here = taps + channel + tl.minimum(top, 0) * channels
        starts = nearest_rows(top, height, width * h_pixel, ROWS)
        fused = zeros(ROWS, COLUMNS, CHANNELS)
        gradients = ()
        over_D = tl.zeros([COLUMNS, CHANNELS], tl.float32)
        for i in tl.static_range(ROWS):
            at = (top + i) * width
            valid = exists & has_channel & (top + i < height)
            weight = widen(tl.load(C + at * C_pixel, mask=top + i < height, other=0.0))
            value = widen(tl.load(dy + at * channels, mask=valid, other=0.0))
            over_D += value * widen(tl.load(x + at * x_pixel, mask=valid, other=0.0))
            tl.store(dx + at * channels, skip * value, mask=valid)
            gradients = gradients + (weight * value,)
        for ring in tl.static_range(3):
            for side in range(0, 1 + tl.minimum(width, 1)):
                shift = (1 + 2 * ring) * (2 * side - 1)
                nearest, inside = nearest_column(column + shift, width, exists)
                values = load_strip(
                    h + nearest * h_pixel,
                    starts,
                    top,
                    height,
                    inside,
                    has_channel,
                    1 + 2 * ring,
                    ROWS,
                    ZEROS,
                    FULL,
                )
                above, level, below = load_side(here, channels, has_channel, side, 1 + 2 * ring)
                fused = convolve(fused, values, above, -1 - 2 * ring, 1 + 2 * ring)
                fused = convolve(fused, values, level, 0, 1 + 2 * ring)
                fused = convolve(fused, values, below, 1 + 2 * ring, 1 + 2 * ring)
                a = correlate(gradients, values, -1 - 2 * ring, 1 + 2 * ring)
                b = correlate(gradients, values, 0, 1 + 2 * ring)
                c = correlate(gradients, values, 1 + 2 * ring, 1 + 2 * ring)
                up, same, down = side_numbers(side, 1 + 2 * ring)
                add_partials(sums, channels, axis < channels, more, a, b, c, c, up, same, down, -1)
        at = h + column * h_pixel
        own = load_strip(at, starts, top, height, exists, has_channel, MARGIN, ROWS, ZEROS, FULL)
        tap = load_own(here, channels, has_channel)
        for k in tl.static_range(3):
            fused = convolve(fused, own, tap[k], 2 * k - 5, MARGIN)
            fused = convolve(fused, own, tap[6 - k], 5 - 2 * k, MARGIN)
        fused = convolve(fused, own, tap[3], 0, MARGIN)
        a = correlate(gradients, own, -5, MARGIN)
        b = correlate(gradients, own, -3, MARGIN)
        c = correlate(gradients, own, -1, MARGIN)
        d = correlate(gradients, own, 0, MARGIN)
        add_partials(sums, channels, axis < channels, more, a, b, c, d, 1, 4, 7, 12)
        a = correlate(gradients, own, 1, MARGIN)
        b = correlate(gradients, own, 3, MARGIN)
        c = correlate(gradients, own, 5, MARGIN)
        add_partials(sums, channels, axis < channels, more, a, b, c, over_D, 17, 20, 23, 25)
        for i in tl.static_range(ROWS):
            at = (top + i) * width
            valid = exists & (top + i < height)
            value = widen(tl.load(dy + at * channels, mask=valid & has_channel, other=0.0))
            over_C = tl.sum(value * fused[i], axis=1, keep_dims=True)
            tl.store(dC + at, over_C, mask=valid)
