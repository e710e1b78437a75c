"""Triton kernels of the selective scan. Importing this imports Triton.

One program is one warp: it carries the N states of BLOCK channels of one image through time, as a
tuple of N vectors, so that a step needs nothing from another lane. B and C are the same numbers for
all channels: they are loaded as scalars, several in one 64-bit word where their layout allows it.

The backward keeps nothing of the forward. ``scan_steps`` writes down the order and arranges B and C
by it, ``scan_states`` runs forward in time and keeps the states before every chunk of STEPS steps,
and ``scan_adjoint`` walks the chunks backwards: state by state it rebuilds the chunk in registers
and follows the gradient through it.
"""

import triton
import triton.language as tl

from rsmamba_kernels.triton_math import row_of, sigmoid, softplus

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
_LANES: tl.constexpr = tl.constexpr(32)
#: Raw step sizes beyond the end of the sequence: softplus makes 0 of it, and float16 holds it.
_NO_STEP: tl.constexpr = tl.constexpr(-60000.0)


@triton.jit
def _words(pointer, COUNT: tl.constexpr):
    """COUNT scalars in a row."""
    words = ()
    for i in tl.static_range(COUNT):
        words = words + (tl.load(pointer + i),)
    return words


@triton.jit
def _value(words, n: tl.constexpr, PACK: tl.constexpr, KIND: tl.constexpr):
    """The n-th of the float32, bfloat16 or float16 numbers of which PACK fill a 64-bit word."""
    if PACK == 1:
        value = words[n].to(tl.float32)
    elif KIND == "fp32":
        value = (words[n // 2] >> (32 * (n % 2))).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        half = (words[n // PACK] >> (32 * (n % PACK // 2))).to(tl.int32)
        if KIND == "fp16":
            half = (half >> (16 * (n % 2))).to(tl.int16)
            value = half.to(tl.float16, bitcast=True).to(tl.float32)
        elif n % 2 == 0:
            value = (half << 16).to(tl.float32, bitcast=True)
        else:
            value = (half & -65536).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _set_out(order, length, width, slot):
    """Where a walk starts and what it needs to go on: see :func:`_row` and :func:`_go_on`.

    Steps along the order cost a few additions where ``row_of`` has to divide.
    """
    columns = order >= 2
    token = columns & (slot >= 0)
    patches = tl.where(token, length - 1, length)
    sign = 1 - 2 * (order & 1)
    at = tl.where(sign < 0, length - 1, 0)
    patch = tl.where(sign < 0, patches - 1, 0)
    step = tl.where(columns, width, 1) * sign
    # Along rows, and without a class token, no position is special.
    return at, patch, sign, step, patches, tl.where(token, slot, length)


@triton.jit
def _row(at, patch, slot):
    """Row of the token in hand; the class token stands among the patches."""
    return tl.where(at == slot, slot, patch + (patch >= slot).to(tl.int32))


@triton.jit
def _go_on(at, patch, sign, step, patches, slot):
    """The next position, and its patch: down a column, or to the top of the next one."""
    after = patch + step
    beyond = after.to(tl.uint32, bitcast=True) >= patches.to(tl.uint32, bitcast=True)
    after = tl.where(beyond, after - sign * (patches - 1), after)
    return at + sign, tl.where(at == slot, patch, after)


@triton.jit(do_not_specialize=["batch", "length", "orders", "width", "slot"])
def scan_forward(
    u, dt, A, B, C, D, bias, y, total,
    u_k, u_b, u_l, dt_k, dt_b, dt_l, B_k, B_b, B_l, C_k, C_b, C_l,
    batch, length, channels, directions, orders, width, slot,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """y = sum of the scans of all directions.

    u, dt (K, B, L, D), A (K, D, N), B, C (K, B, L, N / PACK), D, bias (K, D). Programs along the
    third axis take ``directions`` directions each and write to their own part of y (?, B, L, D).
    In ``total`` (B, L, D), float32, a program adds up its directions.
    """
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(2).to(tl.int64) * directions
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = d < channels
    y += (tl.program_id(2) * batch + b) * length * channels + d
    total += b * length * channels + d
    for i in range(directions):
        k = first + i
        at, patch, sign, step, patches, token = _set_out(
            (orders >> (2 * k).to(tl.int32)) & 3, length, width, slot
        )
        rates, states = (), ()
        for n in tl.static_range(N):
            rate = tl.load(A + (k * channels + d) * N + n, mask=live, other=0.0)
            rates = rates + (rate * _LOG2E,)
            states = states + (tl.zeros([BLOCK], tl.float32),)
        skip = tl.zeros([BLOCK], tl.float32)
        if D is not None:
            skip = tl.load(D + k * channels + d, mask=live, other=0.0)
        if bias is not None:
            offset = tl.load(bias + k * channels + d, mask=live, other=0.0)
        u_at = u + k * u_k + b * u_b + d
        dt_at = dt + k * dt_k + b * dt_b + d
        B_at = B + k * B_k + b * B_b
        C_at = C + k * C_k + b * C_b
        # Each step loads what the next one needs: there is little else to hide the latency.
        row = _row(at, patch, token)
        next_u = tl.load(u_at + row * u_l, mask=live, other=0.0)
        next_dt = tl.load(dt_at + row * dt_l, mask=live, other=0.0)
        next_B = _words(B_at + row * B_l, N // PACK)
        next_C = _words(C_at + row * C_l, N // PACK)
        for t in range(length):
            here, x, delta = row, next_u.to(tl.float32), next_dt.to(tl.float32)
            before = tl.load(total + here * channels, mask=live & (i > 0), other=0.0)
            Bs, Cs = next_B, next_C
            at, patch = _go_on(at, patch, sign, step, patches, token)
            row = tl.where(t + 1 < length, _row(at, patch, token), here)
            next_u = tl.load(u_at + row * u_l, mask=live, other=0.0)
            next_dt = tl.load(dt_at + row * dt_l, mask=live, other=0.0)
            if bias is not None:
                delta += offset
            if SOFTPLUS:
                delta = softplus(delta)
            drive = delta * x
            out = skip * x
            after = ()
            for n in tl.static_range(N):
                decay = tl.exp2(delta * rates[n])
                h = decay * states[n] + drive * _value(Bs, n, PACK, KIND)
                out += h * _value(Cs, n, PACK, KIND)
                after = after + (h,)
            states = after
            # Here, not above: two sets of them would not fit into the registers.
            next_B = _words(B_at + row * B_l, N // PACK)
            next_C = _words(C_at + row * C_l, N // PACK)
            out += before
            last = i + 1 == directions
            tl.store(total + here * channels, out, mask=live & (i + 1 < directions))
            tl.store(y + here * channels, out.to(y.dtype.element_ty), mask=live & last)
        tl.debug_barrier()


@triton.jit(
    do_not_specialize=["batch", "length", "chunks", "first", "orders", "height", "width", "slot"]
)
def scan_steps(
    B, C, rows, arranged, B_k, B_b, B_l, C_k, C_b, C_l,
    batch, length, chunks, first, orders, height, width, slot,
    N: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write down the order of the steps, and B and C in this order.

    rows (K, chunks, STEPS) int32; arranged (K, B, N, chunks, 2, STEPS) float32, zero after the end.
    """
    b = tl.program_id(1).to(tl.int64)
    direction = tl.program_id(2).to(tl.int64)
    k = first + direction
    t = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = row_of(t, (orders >> (2 * k).to(tl.int32)) & 3, length, height, width, slot)
    row = tl.where(t < length, row, 0)
    end = chunks * STEPS
    tl.store(rows + direction * end + t, row, mask=(t < end) & (b == 0))
    n = tl.arange(0, N)
    live = (t < length)[:, None] & (n >= 0)[None, :]
    B_at = B + k * B_k + b * B_b + row[:, None].to(tl.int64) * B_l + n[None, :]
    C_at = C + k * C_k + b * C_b + row[:, None].to(tl.int64) * C_l + n[None, :]
    to = (n[None, :] * chunks + t[:, None] // STEPS) * (2 * STEPS) + t[:, None] % STEPS
    to += arranged + (direction * batch + b) * N * 2 * end
    inside = (t < end)[:, None] & (n >= 0)[None, :]
    tl.store(to, tl.load(B_at, mask=live, other=0.0).to(tl.float32), mask=inside)
    tl.store(to + STEPS, tl.load(C_at, mask=live, other=0.0).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["batch", "chunks", "first"])
def scan_states(
    u, dt, A, B, bias, rows, kept, u_k, u_b, u_l, dt_k, dt_b, dt_l, B_k, B_b, B_l,
    batch, channels, chunks, first,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr,
    KIND: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The states before every chunk of STEPS steps but the first, where they are 0.

    kept (K, B, chunks, N, D) float32.
    """
    b = tl.program_id(1).to(tl.int64)
    direction = tl.program_id(2).to(tl.int64)
    k = first + direction
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = d < channels
    rates, states = (), ()
    for n in tl.static_range(N):
        rate = tl.load(A + (k * channels + d) * N + n, mask=live, other=0.0)
        rates = rates + (rate * _LOG2E,)
        states = states + (tl.zeros([BLOCK], tl.float32),)
    if bias is not None:
        offset = tl.load(bias + k * channels + d, mask=live, other=0.0)
    u += k * u_k + b * u_b + d
    dt += k * dt_k + b * dt_b + d
    B += k * B_k + b * B_b
    kept += (direction * batch + b) * chunks * N * channels + d
    rows += direction * chunks * STEPS
    row = tl.load(rows)
    next_u = tl.load(u + row * u_l, mask=live, other=0.0)
    next_dt = tl.load(dt + row * dt_l, mask=live, other=0.0)
    next_B = _words(B + row * B_l, N // PACK)
    # One row further ahead than the rest, which waits for it.
    row = tl.load(rows + 1)
    for c in range(1, chunks):
        for t in range((c - 1) * STEPS, c * STEPS):
            x, delta, Bs = next_u.to(tl.float32), next_dt.to(tl.float32), next_B
            next_u = tl.load(u + row * u_l, mask=live, other=0.0)
            next_dt = tl.load(dt + row * dt_l, mask=live, other=0.0)
            if bias is not None:
                delta += offset
            if SOFTPLUS:
                delta = softplus(delta)
            drive = delta * x
            after = ()
            for n in tl.static_range(N):
                decay = tl.exp2(delta * rates[n])
                after = after + (decay * states[n] + drive * _value(Bs, n, PACK, KIND),)
            states = after
            next_B = _words(B + row * B_l, N // PACK)
            row = tl.load(rows + t + 2)
        for n in tl.static_range(N):
            tl.store(kept + (c * N + n) * channels, states[n], mask=live)


@triton.jit
def _add_neighbours(a, b, lane, BIT: tl.constexpr):
    """a[lane] + a[other] in lanes without the bit, b[lane] + b[other] in those with it."""
    upper = (lane & BIT) != 0
    return tl.where(upper, b, a) + tl.gather(tl.where(upper, a, b), lane ^ BIT, 0)


@triton.jit
def _add_lanes(parts, lane, COUNT: tl.constexpr, STAGES: tl.constexpr):
    """Sums over all lanes of COUNT = 2**STAGES vectors, each in the lanes of :func:`_part`.

    Every stage halves the number of vectors: that is 2 * COUNT exchanges less than adding up one
    vector after the other.
    """
    for stage in tl.static_range(1, STAGES):
        fewer = ()
        for i in tl.static_range(COUNT >> stage):
            pair = _add_neighbours(parts[i], parts[i + (COUNT >> stage)], lane, 1 << stage)
            fewer = fewer + (pair,)
        parts = fewer
    total = parts[0]
    for stage in tl.static_range(STAGES, 5):
        total += tl.gather(total, lane ^ (1 << stage), 0)
    return total


@triton.jit
def _part(lane, COUNT: tl.constexpr, STAGES: tl.constexpr):
    """Which of the COUNT sums a lane holds after :func:`_add_lanes`."""
    part = lane * 0
    for stage in tl.static_range(STAGES):
        part += ((lane >> stage) & 1) * (COUNT >> (stage + 1))
    return part


@triton.jit
def _fold(v, BLOCK: tl.constexpr):
    """Sum of the channels that a lane holds."""
    return tl.sum(tl.reshape(v, [_LANES, BLOCK // _LANES]), 1)


@triton.jit(do_not_specialize=["batch", "blocks", "length", "chunks", "first"])
def scan_adjoint(
    dy, u, dt, rates, D, bias, arranged, rows, kept, carried, du, ddt, dA, sums, dBC,
    u_k, u_b, u_l, dt_k, dt_b, dt_l, batch, blocks, length, channels, chunks, first,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """All gradients of one block of channels, image and direction.

    With g the gradient of a state, walking back in time: g = C dy + decay' g' (of the step after),
    dB = sum_d g delta u, dC = sum_d dy h, dA = sum_t delta g decay h_before.

    rates (K, N, D) is A log2(e), ``arranged`` holds 64-bit pairs. dA (K, B, N, D)
    has one part for each image, sums (K, B, chunks, 2, D) of the gradients of D and bias also for
    each chunk, dBC (K, B, blocks, L, 2, N) for each block of channels; 2 * STEPS = 2**STAGES.

    Channels are added to the row first: a pointer kept for them would cost two more registers.
    """
    b = tl.program_id(1).to(tl.int64)
    direction = tl.program_id(2).to(tl.int64)
    k = first + direction
    first_d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = first_d < channels
    lane = tl.arange(0, _LANES)
    part = _part(lane, 2 * STEPS, STAGES)
    image = direction * batch + b
    dy += b * length * channels
    u += k * u_k + b * u_b
    dt += k * dt_k + b * dt_b
    du += (k * batch + b) * length * channels
    ddt += (k * batch + b) * length * channels
    rates += k * N * channels
    arranged += image * N * chunks * STEPS
    rows += direction * chunks * STEPS
    kept += image * chunks * N * channels
    carried += image * N * channels
    dA += image * N * channels
    sums += image * chunks * 2 * channels
    dBC += (image * blocks + tl.program_id(0)) * length * 2 * N
    for back in range(chunks):
        c = chunks - 1 - back
        inner = live & (back > 0)
        # Adds nothing, but the compiler cannot know: it would keep one address for every tensor, in
        # registers that the states need.
        d = first_d + tl.multiple_of(tl.load(rows + c * STEPS) >> 31, BLOCK)
        deltas, drives, cotangents, over_A, over_B = (), (), (), (), ()
        offset = tl.zeros([BLOCK], tl.float32)
        if bias is not None:
            offset = tl.load(bias + (k * channels + d), mask=live, other=0.0)
        for j in tl.static_range(STEPS):
            row = tl.load(rows + c * STEPS + j)
            inside = live & (c * STEPS + j < length)
            x = tl.load(u + (row * u_l + d), mask=inside, other=0.0).to(tl.float32)
            # What lies beyond the end neither decays nor adds anything.
            delta = tl.load(dt + (row * dt_l + d), mask=inside, other=_NO_STEP).to(tl.float32)
            if SOFTPLUS:
                delta = softplus(delta + offset)
            else:
                delta = tl.where(inside, delta + offset, 0.0)
            cotangent = tl.load(dy + (row * channels + d), mask=inside, other=0.0).to(tl.float32)
            deltas = deltas + (delta,)
            drives = drives + (delta * x,)
            cotangents = cotangents + (cotangent,)
            over_A = over_A + (tl.zeros([BLOCK], tl.float32),)
            over_B = over_B + (tl.zeros([BLOCK], tl.float32),)
        lane_step = part % STEPS
        lane_live = (c * STEPS + lane_step < length) & (lane < 2 * STEPS)
        to = tl.load(rows + c * STEPS + lane_step) * 2 + part // STEPS
        for n in range(N):
            words = _words(arranged + (n * chunks + c) * STEPS, STEPS)
            rate = tl.load(rates + (n * channels + d), mask=live, other=0.0)
            h = tl.load(kept + ((c * N + n) * channels + d), mask=live & (c > 0), other=0.0)
            g = tl.load(carried + (n * channels + d), mask=inner, other=0.0)
            sum_A = tl.load(dA + (n * channels + d), mask=inner, other=0.0)
            decays, states = (), (h,)
            for j in tl.static_range(STEPS):
                decay = tl.exp2(deltas[j] * rate)
                h = decay * h + drives[j] * _value(words, j, 2, "fp32")
                decays = decays + (decay,)
                states = states + (h,)
            parts, more_A, more_B = (), (), ()
            for j in tl.static_range(STEPS - 1, -1, -1):
                g += cotangents[j] * _value(words, STEPS + j, 2, "fp32")
                part_B = _fold(g * drives[j], BLOCK)
                part_C = _fold(cotangents[j] * states[j + 1], BLOCK)
                parts = (_add_neighbours(part_B, part_C, lane, 1),) + parts
                more_B = (over_B[j] + g * _value(words, j, 2, "fp32"),) + more_B
                g *= decays[j]
                w = g * states[j]
                more_A = (over_A[j] + w * rate,) + more_A
                sum_A += w * deltas[j]
            over_A, over_B = more_A, more_B
            tl.store(carried + (n * channels + d), g, mask=live)
            tl.store(dA + (n * channels + d), sum_A, mask=live)
            total = _add_lanes(parts, lane, STEPS, STAGES)
            tl.store(dBC + (to * N + n), total, mask=lane_live)
        skip = tl.zeros([BLOCK], tl.float32)
        if D is not None:
            skip = tl.load(D + (k * channels + d), mask=live, other=0.0)
        offset = tl.zeros([BLOCK], tl.float32)
        if bias is not None:
            offset = tl.load(bias + (k * channels + d), mask=live, other=0.0)
        sum_D = tl.zeros([BLOCK], tl.float32)
        sum_bias = tl.zeros([BLOCK], tl.float32)
        for j in tl.static_range(STEPS):
            row = tl.load(rows + c * STEPS + j)
            inside = live & (c * STEPS + j < length)
            x = tl.load(u + (row * u_l + d), mask=inside, other=0.0).to(tl.float32)
            grad = over_A[j] * _LN2 + x * over_B[j]
            if SOFTPLUS:
                raw = tl.load(dt + (row * dt_l + d), mask=inside, other=_NO_STEP).to(tl.float32)
                grad *= sigmoid(raw + offset)
            grad_u = deltas[j] * over_B[j] + skip * cotangents[j]
            tl.store(du + (row * channels + d), grad_u.to(du.dtype.element_ty), mask=inside)
            tl.store(ddt + (row * channels + d), grad.to(ddt.dtype.element_ty), mask=inside)
            sum_D += cotangents[j] * x
            sum_bias += grad
        tl.store(sums + (c * 2 * channels + d), sum_D, mask=live)
        tl.store(sums + ((c * 2 + 1) * channels + d), sum_bias, mask=live)
        # What a lane has written here, another one may read.
        tl.debug_barrier()
