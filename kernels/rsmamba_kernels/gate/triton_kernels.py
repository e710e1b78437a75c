"""The gate in Triton. Importing this imports Triton: do it where it is used.

Elementwise over rows that may lie apart: a program takes ROWS x CHANNELS numbers.
"""

import triton
import triton.language as tl

from rsmamba_kernels.triton_math import sigmoid, widen


@triton.jit
def gate_forward(
    y,
    z,
    out,
    scale,
    rows,
    channels,
    y_row,
    z_row,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Programs: (blocks of rows, blocks of channels); ``out`` is contiguous."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    exists = (row < rows) & (channel < channels)
    row = row.to(tl.int64)
    value = widen(tl.load(y + row * y_row + channel, mask=exists, other=0.0))
    gate = widen(tl.load(z + row * z_row + channel, mask=exists, other=0.0))
    result = scale * value * (gate * sigmoid(gate))
    tl.store(out + row * channels + channel, result, mask=exists)


@triton.jit
def gate_backward(
    dout,
    y,
    z,
    dy,
    dz,
    scale,
    rows,
    channels,
    dout_row,
    y_row,
    z_row,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The same blocks; ``dy`` and ``dz`` are contiguous."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    exists = (row < rows) & (channel < channels)
    row = row.to(tl.int64)
    value = widen(tl.load(y + row * y_row + channel, mask=exists, other=0.0))
    gate = widen(tl.load(z + row * z_row + channel, mask=exists, other=0.0))
    gradient = scale * widen(tl.load(dout + row * dout_row + channel, mask=exists, other=0.0))
    share = sigmoid(gate)
    slope = share * (1 + gate * (1 - share))
    tl.store(dy + row * channels + channel, gradient * (gate * share), mask=exists)
    tl.store(dz + row * channels + channel, gradient * value * slope, mask=exists)
