"""The convolution along scan orders in Triton. Importing this imports Triton.

A program is one warp that slides a window of TAPS tokens along the rows, or the columns, of an
image. The same window serves the direction there, whose newest token is the last one, and the
direction back, whose newest token is the first one: its taps are those of the direction there,
flipped. So both cost one read of x, and a token is converted to float32 once.
"""

import triton
import triton.language as tl

from rsmamba_kernels.triton_math import row_of, sigmoid, sigmoid_16bit, widen

#: Windows per turn of the loop: their loads are under way together.
_TURN: tl.constexpr = tl.constexpr(4)
#: Of these, being 1 or a multiple of 16 says nothing that would help.
_NUMBERS = ["length", "size", "there", "back", "columns", "height", "width", "slot"]


@triton.jit
def _set_out(t, columns, length, height, width, slot):
    """Where a walk along the rows or columns is at its t-th token, for :func:`_go_on`.

    Going on costs a few additions where ``row_of`` has to divide.
    """
    token = (columns != 0) & (slot >= 0)
    special = tl.where(token, slot, length)
    k = t - (t > special).to(tl.int32)
    patch = tl.where(columns != 0, (k % height) * width + k // height, k)
    return patch, tl.where(columns != 0, width, 1), length - token.to(tl.int32), special


@triton.jit
def _row(t, patch, special):
    return tl.where(t == special, t, patch + (patch >= special).to(tl.int32))


@triton.jit
def _go_on(t, patch, step, patches, special):
    """The patch of the next token; the class token is no patch."""
    ahead = patch + step
    ahead = tl.where(ahead >= patches, ahead - patches + 1, ahead)
    return tl.where(t == special, patch, ahead)


@triton.jit
def _load_taps(weight, k, channels, channel, exists, FLIP: tl.constexpr, TAPS: tl.constexpr):
    """Weights of a direction from the first token of the window to the last."""
    taps = ()
    for w in tl.static_range(TAPS):
        at = (k * channels + channel) * TAPS + (TAPS - 1 - w if FLIP else w)
        taps = taps + (tl.load(weight + at, mask=exists, other=0.0),)
    return taps


@triton.jit
def _load_bias(bias, k, channels, channel, exists):
    value = tl.zeros(channel.shape, tl.float32)
    if bias is not None:
        value = tl.load(bias + k * channels + channel, mask=exists, other=0.0)
    return value


@triton.jit
def _convolve(taps, total, values, AT: tl.constexpr):
    """Sum over the window that starts at AT."""
    for w in tl.static_range(len(taps)):
        total += taps[w] * values[AT + w]
    return total


@triton.jit
def _silu(x, PRECISE: tl.constexpr):
    if PRECISE:
        return x * sigmoid(x)
    else:
        return x * sigmoid_16bit(x)


@triton.jit
def _silu_slope(x, PRECISE: tl.constexpr):
    if PRECISE:
        share = sigmoid(x)
    else:
        share = sigmoid_16bit(x)
    return share * (1 + x * (1 - share))


@triton.jit
def _zeros(COUNT: tl.constexpr, CHANNELS: tl.constexpr):
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros([CHANNELS], tl.float32),)
    return values


@triton.jit
def _look_back(x, x_row, begin, columns, length, height, width, slot, exists, COUNT: tl.constexpr):
    """Rows and values of the COUNT tokens before ``begin``, zeros before the first one."""
    rows = ()
    values = ()
    for i in tl.static_range(COUNT):
        t = begin - COUNT + i
        row = row_of(tl.maximum(t, 0), columns, length, height, width, slot)
        value = tl.load(x + row * x_row, mask=exists & (t >= 0) & (t < length), other=0.0)
        rows = rows + (row,)
        values = values + (widen(value),)
    return rows, values


@triton.jit(do_not_specialize=_NUMBERS)
def conv1d_silu_forward(
    x,
    weight,
    bias,
    out,
    length,
    channels,
    x_batch,
    x_row,
    size,
    there,
    back,
    columns,
    height,
    width,
    slot,
    THERE: tl.constexpr,
    BACK: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Outputs of the direction ``there`` along rows or columns, of the one ``back``, or of both.

    Programs: (blocks of channels, blocks of ``size`` windows, batch). ``columns`` is 2 along
    columns, 0 along rows; ``out`` (K, B, L, D) is contiguous.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    batch = tl.program_id(2).to(tl.int64)
    PRECISE: tl.constexpr = out.dtype.element_ty == tl.float32
    there_taps = _load_taps(weight, there, channels, channel, exists, False, TAPS)
    back_taps = _load_taps(weight, back, channels, channel, exists, True, TAPS)
    there_bias = _load_bias(bias, there, channels, channel, exists)
    back_bias = _load_bias(bias, back, channels, channel, exists)
    x += batch * x_batch + channel
    image = batch * length * channels + channel
    direction = length.to(tl.int64) * channels * tl.num_programs(2)
    to_there, to_back = out + image + there * direction, out + image + back * direction
    # The direction back is done when the window has left the sequence.
    windows = length + (TAPS - 1 if BACK else 0)
    begin = tl.program_id(1) * size
    patch, step, patches, special = _set_out(begin, columns, length, height, width, slot)
    rows, values = _look_back(
        x, x_row, begin, columns, length, height, width, slot, exists, TAPS - 1
    )
    for t in range(begin, tl.minimum(begin + size, windows), _TURN):
        for i in tl.static_range(_TURN):
            row = _row(t + i, patch, special)
            patch = _go_on(t + i, patch, step, patches, special)
            value = tl.load(x + row * x_row, mask=exists & (t + i < length), other=0.0)
            rows = rows + (row,)
            values = values + (widen(value),)
        for i in tl.static_range(_TURN):
            if THERE:
                result = _silu(_convolve(there_taps, there_bias, values, i), PRECISE)
                at = to_there + rows[i + TAPS - 1] * channels
                tl.store(at, result, mask=exists & (t + i < length))
            if BACK:
                result = _silu(_convolve(back_taps, back_bias, values, i), PRECISE)
                inside = (t + i >= TAPS - 1) & (t + i < windows)
                tl.store(to_back + rows[i] * channels, result, mask=exists & inside)
        rows = rows[_TURN:]
        values = values[_TURN:]


@triton.jit
def _add(values, AT: tl.constexpr, more):
    return values[:AT] + (values[AT] + more,) + values[AT + 1 :]


@triton.jit
def _adjoint(
    gradient,
    taps,
    bias,
    values,
    gradients,
    sums,
    counts,
    AT: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Follow an output's gradient to its window, taps and bias.

    Args:
        gradient: Of the output of the window that starts at AT.
        taps: Weights, of which ``sums`` are the gradients, then that of the bias.
        bias: Bias.
        values: Tokens.
        gradients: Of the tokens.
        sums: See ``taps``.
        counts: Whether this program is the one that counts this output.
        AT: Start of the window.
        PRECISE: Whether for 32 bits.
    """
    gradient = gradient * _silu_slope(_convolve(taps, bias, values, AT), PRECISE)
    counted = tl.where(counts, gradient, 0.0)
    for w in tl.static_range(len(taps)):
        gradients = _add(gradients, AT + w, taps[w] * gradient)
        sums = _add(sums, w, counted * values[AT + w])
    return gradients, _add(sums, len(taps), counted)


@triton.jit
def _store_sums(to, channels, exists, sums, FLIP: tl.constexpr):
    TAPS: tl.constexpr = len(sums) - 1
    for w in tl.static_range(TAPS):
        tl.store(to + (TAPS - 1 - w if FLIP else w) * channels, sums[w], mask=exists)
    tl.store(to + TAPS * channels, sums[TAPS], mask=exists)


@triton.jit(do_not_specialize=_NUMBERS)
def conv1d_silu_backward(
    dout,
    x,
    weight,
    bias,
    dx,
    total,
    sums,
    length,
    channels,
    x_batch,
    x_row,
    size,
    there,
    back,
    columns,
    height,
    width,
    slot,
    THERE: tl.constexpr,
    BACK: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients through the same directions; programs are (., blocks of ``size`` tokens, .).

    ``total`` (B, L, D) collects the launches' gradients of x in float32 from the FIRST on; the
    LAST writes dx. ``sums`` (batch x blocks of tokens, 2, TAPS + 1, D) are the programs' parts of
    the gradients of the taps and the bias, there and back.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    batch = tl.program_id(2).to(tl.int64)
    PRECISE: tl.constexpr = dx.dtype.element_ty == tl.float32
    there_taps = _load_taps(weight, there, channels, channel, exists, False, TAPS)
    back_taps = _load_taps(weight, back, channels, channel, exists, True, TAPS)
    there_bias = _load_bias(bias, there, channels, channel, exists)
    back_bias = _load_bias(bias, back, channels, channel, exists)
    there_sums = _zeros(TAPS + 1, CHANNELS)
    back_sums = _zeros(TAPS + 1, CHANNELS)
    x += batch * x_batch + channel
    image = batch * length * channels + channel
    direction = length.to(tl.int64) * channels * tl.num_programs(2)
    from_there, from_back = dout + image + there * direction, dout + image + back * direction
    begin = tl.program_id(1) * size
    end = tl.minimum(begin + size, length)
    patch, step, patches, special = _set_out(begin, columns, length, height, width, slot)
    rows, values = _look_back(
        x, x_row, begin, columns, length, height, width, slot, exists, TAPS - 1
    )
    gradients = _zeros(TAPS - 1, CHANNELS)
    # A token's gradient is complete when the window leaves it.
    for t in range(begin, end + TAPS - 1, _TURN):
        arrived_there = ()
        arrived_back = ()
        for i in tl.static_range(_TURN):
            row = _row(t + i, patch, special)
            patch = _go_on(t + i, patch, step, patches, special)
            inside = exists & (t + i < length)
            value = tl.load(x + row * x_row, mask=inside, other=0.0)
            rows = rows + (row,)
            values = values + (widen(value),)
            gradients = gradients + (tl.zeros([CHANNELS], tl.float32),)
            if THERE:
                value = tl.load(from_there + row * channels, mask=inside, other=0.0)
                arrived_there = arrived_there + (widen(value),)
            if BACK:
                inside = (t + i >= TAPS - 1) & (t + i < length + TAPS - 1)
                value = tl.load(from_back + rows[i] * channels, mask=exists & inside, other=0.0)
                arrived_back = arrived_back + (widen(value),)
        for i in tl.static_range(_TURN):
            token = t + i - (TAPS - 1)
            mine = (token >= begin) & (token < end)
            if THERE:
                gradients, there_sums = _adjoint(
                    arrived_there[i],
                    there_taps,
                    there_bias,
                    values,
                    gradients,
                    there_sums,
                    t + i < end,
                    i,
                    PRECISE,
                )
            if BACK:
                gradients, back_sums = _adjoint(
                    arrived_back[i],
                    back_taps,
                    back_bias,
                    values,
                    gradients,
                    back_sums,
                    mine,
                    i,
                    PRECISE,
                )
            to = image + rows[i] * channels
            result = gradients[i]
            if not FIRST:
                result += tl.load(total + to, mask=exists & mine, other=0.0)
            if LAST:
                tl.store(dx + to, result, mask=exists & mine)
            else:
                tl.store(total + to, result, mask=exists & mine)
        rows = rows[_TURN:]
        values = values[_TURN:]
        gradients = gradients[_TURN:]
    part = batch * tl.num_programs(1) + tl.program_id(1)
    sums += part * 2 * (TAPS + 1) * channels + channel
    if THERE:
        _store_sums(sums, channels, exists, there_sums, False)
    if BACK:
        _store_sums(sums + (TAPS + 1) * channels, channels, exists, back_sums, True)
