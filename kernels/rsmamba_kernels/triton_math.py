"""Functions that the Triton kernels share. Importing this imports Triton: do it where it is used.

Nothing here needs libdevice or inline assembly, which Triton's interpreter lacks.
"""

import triton
import triton.language as tl

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
#: log2(e) less its value rounded to float32.
_LOG2E_REST: tl.constexpr = tl.constexpr(1.925963033500e-08)
_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
#: e to this power is 0 in float32.
_VANISHES: tl.constexpr = tl.constexpr(-104.0)


@triton.jit
def row_of(t, order, length, height, width, slot):
    """Row of the t-th visited token; ``slot`` is the class token's, or -1.

    ``t`` is a number or a tensor of them, ``order`` may be known at compile time or not;
    ``path_index`` is the specification.
    """
    at = t
    if order % 2 == 1:
        at = length - 1 - t
    row = at
    if order >= 2:
        k = at - ((slot >= 0) & (at > slot)).to(tl.int32)
        patch = (k % height) * width + k // height
        patch += ((slot >= 0) & (patch >= slot)).to(tl.int32)
        row = tl.where(at == slot, at, patch)
    return row


@triton.jit
def exp(x):
    """e**x for x <= 0 in float32; the hardware has 2**x, the rounding of x * log2(e) is made good.

    Also where x is -inf or NaN.
    """
    x = tl.maximum(x, _VANISHES, propagate_nan=tl.PropagateNan.ALL)
    high = x * _LOG2E
    rest = tl.fma(x, _LOG2E, -high) + x * _LOG2E_REST
    return tl.exp2(high) * (1 + _LN2 * rest)


@triton.jit
def log1p_unit(e):
    """log(1 + e) for e in [0, 1], to about one unit in the last place also where e is tiny.

    The hardware's logarithm is absolutely, not relatively, accurate near 1.
    """
    # log1p(e) / e, smallest relative error on [0, 1].
    p = tl.fma(e, -0.0032440118957310915, 0.019851399585604668)
    p = tl.fma(e, p, -0.05695941299200058)
    p = tl.fma(e, p, 0.10603641718626022)
    p = tl.fma(e, p, -0.1530558466911316)
    p = tl.fma(e, p, 0.19675935804843903)
    p = tl.fma(e, p, -0.24954132735729218)
    p = tl.fma(e, p, 0.3332996368408203)
    p = tl.fma(e, p, -0.4999990165233612)
    p = tl.fma(e, p, 1.0)
    return e * p


@triton.jit
def softplus(x):
    """log(1 + e**x) for any x, in float32."""
    return tl.maximum(x, 0.0) + log1p_unit(exp(-tl.abs(x)))


@triton.jit
def softplus_and_slope(x):
    """softplus(x) and its derivative, the sigmoid of x."""
    e = exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + log1p_unit(e), _slope(x, e)


@triton.jit
def _slope(x, e):
    """1 / (1 + e**-x), given e**-|x|."""
    # A division is several instructions, this is one and a multiplication.
    root = tl.rsqrt(1.0 + e)
    return root * root * tl.where(x >= 0, 1.0, e)


@triton.jit
def sigmoid(x):
    """1 / (1 + e**-x) in float32."""
    return _slope(x, exp(-tl.abs(x)))


@triton.jit
def log1p_unit_16bit(e):
    """log(1 + e) for e in [0, 1], relatively exact to 1e-5: below the rounding of 16-bit values."""
    p = tl.fma(e, -0.024734525, 0.1035926)
    p = tl.fma(e, p, -0.21240417)
    p = tl.fma(e, p, 0.32622607)
    p = tl.fma(e, p, -0.49953947)
    p = tl.fma(e, p, 1.0)
    return e * p


@triton.jit
def softplus_16bit(x):
    """softplus(x) for an operator whose inputs and outputs have 16 bits."""
    return tl.maximum(x, 0.0) + log1p_unit_16bit(tl.exp2(-_LOG2E * tl.abs(x)))


@triton.jit
def softplus_and_slope_16bit(x):
    """softplus(x) and its derivative for an operator whose inputs and outputs have 16 bits."""
    e = tl.exp2(-_LOG2E * tl.abs(x))
    log = log1p_unit_16bit(e)
    # 1 / (1 + e) = exp(-log(1 + e)): cheaper than a division.
    return tl.maximum(x, 0.0) + log, tl.exp2(-_LOG2E * log) * tl.where(x >= 0, 1.0, e)


@triton.jit
def widen(x):
    """``x`` in float32; for bfloat16 in one instruction per value, where ``.to`` takes three."""
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def sigmoid_16bit(x):
    """1 / (1 + e**-x) for an operator whose inputs and outputs have 16 bits."""
    root = tl.rsqrt(1.0 + tl.exp2(-_LOG2E * x))
    return root * root
