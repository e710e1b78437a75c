"""The state scan in Triton. Importing this imports Triton: do it where it is used.

A program walks the sequence of one image and one block of channels in tiles of SPANS x STEPS
tokens. All spans of STEPS tokens advance together, each from an empty state, step by step in
registers; one scan over their few ends then tells what state really entered each, and adding it is
one multiplication per token. So x and dt are read once, and an image of few channels still keeps
many threads busy.
"""

import triton
import triton.language as tl

from rsmamba_kernels.triton_math import (
    softplus,
    softplus_16bit,
    softplus_and_slope,
    softplus_and_slope_16bit,
    widen,
)

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _after(decay, state, decay_in, state_in, next_decay, next_state, next_decay_in, next_state_in):
    """Two runs of spans as one: what leaves it, and what enters its last span."""
    return (
        decay * next_decay,
        state * next_decay + next_state,
        decay * next_decay_in,
        state * next_decay_in + next_state_in,
    )


@triton.jit
def _entering(decay, state, carry, span):
    """The states that enter each span, and the one that enters the next tile.

    Args:
        decay: (SPANS, CHANNELS) product of the decays of a span.
        state: (SPANS, CHANNELS) its last state if it started from nothing.
        carry: (1, CHANNELS) state that entered the tile.
        span: (SPANS, 1) numbers.
    """
    state += tl.where(span == 0, decay * carry, 0.0)
    one, nothing = tl.full(decay.shape, 1.0, tl.float32), tl.zeros(decay.shape, tl.float32)
    _, state, _, entering = tl.associative_scan((decay, state, one, nothing), 0, _after)
    last = tl.sum(tl.where(span == decay.shape[0] - 1, state, 0.0), axis=0, keep_dims=True)
    return tl.where(span == 0, carry, entering), last


@triton.jit
def state_scan_forward(
    x,
    dt,
    A,
    B,
    bias,
    h,
    length,
    channels,
    x_batch,
    x_row,
    dt_batch,
    dt_row,
    B_batch,
    B_row,
    SOFTPLUS: tl.constexpr,
    SPANS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Programs: (batch, channels / CHANNELS); ``h`` is contiguous."""
    batch = tl.program_id(0).to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    exists = channel < channels
    rate = tl.load(A + channel, mask=exists, other=0.0) * _LOG2E
    offset = tl.zeros([1, CHANNELS], tl.float32)
    if bias is not None:
        offset = tl.load(bias + channel, mask=exists, other=0.0)
    span = tl.arange(0, SPANS)[:, None]
    x += batch * x_batch
    dt += batch * dt_batch
    B += batch * B_batch
    h += batch * length * channels
    carry = tl.zeros([1, CHANNELS], tl.float32)
    for start in range(0, length, SPANS * STEPS):
        state = tl.zeros([SPANS, CHANNELS], tl.float32)
        decay = tl.full([SPANS, CHANNELS], 1.0, tl.float32)
        states = ()
        decays = ()
        for i in tl.static_range(STEPS):
            token = start + span * STEPS + i
            inside = (token < length) & exists
            drive = widen(tl.load(x + token * x_row + channel, mask=inside, other=0.0))
            delta = widen(tl.load(dt + token * dt_row + channel, mask=inside, other=0.0))
            weight = widen(tl.load(B + token * B_row, mask=token < length, other=0.0))
            delta += offset
            if SOFTPLUS:
                if x.dtype.element_ty == tl.float32:
                    delta = softplus(delta)
                else:
                    delta = softplus_16bit(delta)
            a = tl.exp2(delta * rate)
            state = a * state + delta * weight * drive
            decay = decay * a
            states = states + (state,)
            decays = decays + (decay,)
        entering, carry = _entering(decay, state, carry, span)
        for i in tl.static_range(STEPS):
            token = start + span * STEPS + i
            out = states[i] + decays[i] * entering
            tl.store(h + token * channels + channel, out, mask=(token < length) & exists)


@triton.jit
def state_scan_backward(
    dh,
    h,
    x,
    dt,
    A,
    B,
    bias,
    dx,
    ddt,
    dA,
    dB,
    dbias,
    length,
    channels,
    x_batch,
    x_row,
    dt_batch,
    dt_row,
    B_batch,
    B_row,
    SOFTPLUS: tl.constexpr,
    SPANS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The same walk from the last token to the first; what is carried is the gradient.

    ``dA`` and ``dbias`` are sums per image (B, D), ``dB`` per block of channels (blocks, B, L).
    """
    batch = tl.program_id(0).to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    exists = channel < channels
    A_here = tl.load(A + channel, mask=exists, other=0.0)
    rate = A_here * _LOG2E
    offset = tl.zeros([1, CHANNELS], tl.float32)
    if bias is not None:
        offset = tl.load(bias + channel, mask=exists, other=0.0)
    span = tl.arange(0, SPANS)[:, None]
    x += batch * x_batch
    dt += batch * dt_batch
    B += batch * B_batch
    image = batch * length * channels
    dh += image
    h += image
    dx += image
    ddt += image
    dB += (tl.program_id(1) * tl.num_programs(0) + batch) * length
    carry = tl.zeros([1, CHANNELS], tl.float32)
    sum_A = tl.zeros([SPANS, CHANNELS], tl.float32)
    sum_bias = tl.zeros([SPANS, CHANNELS], tl.float32)
    for start in range(0, length, SPANS * STEPS):
        # What a token passes to the one before: its decay times the gradient of its state.
        passed = tl.zeros([SPANS, CHANNELS], tl.float32)
        decay = tl.full([SPANS, CHANNELS], 1.0, tl.float32)
        deltas = ()
        slopes = ()
        for i in tl.static_range(STEPS):
            token = length - 1 - start - span * STEPS - i
            inside = (token >= 0) & exists
            delta = widen(tl.load(dt + token * dt_row + channel, mask=inside, other=0.0))
            g = widen(tl.load(dh + token * channels + channel, mask=inside, other=0.0))
            delta += offset
            slope = tl.full([SPANS, CHANNELS], 1.0, tl.float32)
            if SOFTPLUS:
                if x.dtype.element_ty == tl.float32:
                    delta, slope = softplus_and_slope(delta)
                else:
                    delta, slope = softplus_and_slope_16bit(delta)
            a = tl.exp2(delta * rate)
            passed = a * (g + passed)
            decay = decay * a
            deltas = deltas + (delta,)
            slopes = slopes + (slope,)
        passed, carry = _entering(decay, passed, carry, span)
        for i in tl.static_range(STEPS):
            token = length - 1 - start - span * STEPS - i
            inside = (token >= 0) & exists
            at = token * channels + channel
            drive = widen(tl.load(x + token * x_row + channel, mask=inside, other=0.0))
            weight = widen(tl.load(B + token * B_row, mask=token >= 0, other=0.0))
            before = tl.load(h + at - channels, mask=(token >= 1) & exists, other=0.0)
            g = passed + widen(tl.load(dh + at, mask=inside, other=0.0))
            # Not the product of above: the compiler would keep a register per token for it.
            passed = g * tl.exp2((deltas[i] * A_here) * _LOG2E)
            through_state = passed * widen(before)
            weighted = g * weight
            over_dt = (through_state * A_here + weighted * drive) * slopes[i]
            over_B = tl.sum(g * deltas[i] * drive, axis=1, keep_dims=True)
            sum_A += through_state * deltas[i]
            sum_bias += over_dt
            tl.store(dx + at, weighted * deltas[i], mask=inside)
            tl.store(ddt + at, over_dt, mask=inside)
            tl.store(dB + token, over_B, mask=token >= 0)
    sums = batch * channels + channel
    tl.store(dA + sums, tl.sum(sum_A, axis=0, keep_dims=True), mask=exists)
    tl.store(dbias + sums, tl.sum(sum_bias, axis=0, keep_dims=True), mask=exists)
