"""What the selective scan's Triton kernels must do, on the GPU or in Triton's interpreter.

Outputs and all gradients against the float64 reference, with uninitialised memory full of NaN.
"""

from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch

from rsmamba_kernels.selective_scan.reference import selective_scan_reference
from tests.kernels.cases import randn, relative_error

#: Largest error relative to the largest magnitude of the tensor; RMS ratio in 16 bits.
OUTPUT, GRADIENT = 2e-6, 5e-6
OUTPUT_16, GRADIENT_16 = 5e-3, 1e-2
NAMES = ("u", "dt", "A", "B", "C", "D", "dt_bias")

#: Settings of the module that are for large images: directions one after the other, added up by
#: one program, and gradients of one direction at a time.
ADDED_UP = {"_FEW_PROGRAMS": 0}
ONE_AT_A_TIME = {"_SCRATCH": 0}


def inputs(k=1, b=1, length=10, d=5, n=4):
    return [
        randn(k, b, length, d),
        0.5 * randn(k, b, length, d, seed=1) - 2,
        -torch.exp(randn(k, d, n)),
        randn(k, b, length, n, seed=2),
        randn(k, b, length, n, seed=3),
        randn(k, d),
        0.5 * randn(k, d, seed=4),
    ]


def path(orders=(0,), grid=None, cls="none", length=10):
    """Options of a scan after softplus."""
    height, width = grid or (1, length)
    slot = {"none": -1, "first": 0, "middle": height * width // 2}[cls]
    return [list(orders), height, width, slot]


@contextmanager
def settings(**values):
    """Other values for constants of the module."""
    from rsmamba_kernels.selective_scan import triton

    before = {name: getattr(triton, name) for name in values}
    for name, value in values.items():
        setattr(triton, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(triton, name, value)


def scan(dy, tensors, softplus, way):
    """Output and gradients of the kernels, with uninitialised memory full of NaN."""
    from rsmamba_kernels.selective_scan import triton

    torch.use_deterministic_algorithms(True)
    try:
        y = triton.forward(*tensors, softplus, *way)
        return y, triton.backward(dy, *tensors, softplus, *way)
    finally:
        torch.use_deterministic_algorithms(False)


def wanted(dy, tensors, softplus, way):
    """Output and gradients of the reference in float64, None where the input is."""
    leaves = [t if t is None else t.double().cpu().requires_grad_() for t in tensors]
    y = selective_scan_reference(*leaves, softplus, *way)
    given = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad(y, given, dy.double().cpu()))
    return y.detach(), [None if leaf is None else next(gradients) for leaf in leaves]


def check(device, tensors, way, *, softplus=True, slack=1, **changes):
    """Compare; ``slack`` widens the tolerance of the gradients."""
    tensors = [t if t is None else t.to(device) for t in tensors]
    u = tensors[0]
    dy = randn(*u.shape[1:], seed=9).to(u)
    with settings(**changes):
        y, gradients = scan(dy, tensors, softplus, way)
    expected, expected_gradients = wanted(dy, tensors, softplus, way)
    assert y.dtype == u.dtype and y.shape == expected.shape
    assert_close("y", y, expected, u.dtype, OUTPUT, OUTPUT_16)
    for name, t, got, grad in zip(NAMES, tensors, gradients, expected_gradients, strict=True):
        if t is None:
            continue
        assert got.dtype == t.dtype and got.shape == t.shape, name
        assert_close(name, got, grad, u.dtype, slack * GRADIENT, GRADIENT_16)


def assert_close(name, got, expected, dtype, tolerance, tolerance_16):
    if dtype == torch.float32:
        error = relative_error(got, expected)
    else:
        error = ((got.double().cpu() - expected).norm() / expected.norm()).item()
        tolerance = tolerance_16
    assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"


def check_orders(device, grid, cls):
    length = grid[0] * grid[1] + (cls != "none")
    check(device, inputs(4, 1, length, 3, 1), path((0, 1, 2, 3), grid, cls))


def check_extremes(device, raw, rate):
    tensors = inputs(length=17, n=1)
    tensors[1] = raw + 0.1 * tensors[1]
    tensors[2] = rate * (1 + 0.1 * tensors[2].abs())
    # Where whole states decay at once, their gradients are sums of what is left.
    check(device, tensors, path(length=17), slack=2)


def check_dtype(device, dtype, k, n, **changes):
    check(device, typed(inputs(k, 2, 12, 6, n), dtype), path(range(k), (3, 4)), **changes)


def typed(tensors, dtype):
    """u, dt, B and C in a dtype; parameters stay in float32."""
    return [
        t.to(dtype) if name in ("u", "dt", "B", "C") else t
        for name, t in zip(NAMES, tensors, strict=True)
    ]


def check_roma(device, dtype):
    tensors = typed(inputs(4, 2, 197, 768, 16), dtype)
    check(device, tensors, path((0, 1, 2, 3), (14, 14), "middle"))


def check_without(device, missing, softplus):
    tensors = [None if name in missing else t for name, t in zip(NAMES, inputs(), strict=True)]
    tensors[1] = tensors[1] if softplus else tensors[1].abs()
    if not softplus and tensors[6] is not None:
        tensors[6] = tensors[6].abs()
    check(device, tensors, path(), softplus=softplus)


def check_strides(device, offset, dtype):
    """B and C as slices of one wider tensor, u and dt as others; every stride is another one."""
    u, dt, A, B, C, D, bias = inputs(2, 2, 11, 6, 8)
    wide = torch.cat([randn(2, 2, 11, offset), B, C, randn(2, 2, 11, 3)], -1).to(dtype)
    rows = torch.cat([u, dt], -1).transpose(1, 2).contiguous().transpose(1, 2).to(dtype)
    tensors = [
        rows[..., :6],
        rows[..., 6:].transpose(2, 3).contiguous().transpose(2, 3),
        A.transpose(1, 2).contiguous().transpose(1, 2),
        wide[..., offset : offset + 8],
        wide[..., offset + 8 : offset + 16],
        D,
        bias,
    ]
    assert not any(t.is_contiguous() for t in tensors[:5])
    check(device, tensors, path((1, 0), length=11))


def check_repeats(device):
    tensors = [t.to(device) for t in inputs(2, 1, 9, 70, 1)]
    dy = randn(1, 9, 70, seed=9).to(device)
    runs = [scan(dy, tensors, True, path((0, 1), length=9)) for _ in range(2)]
    (first, gradients), (second, again) = runs
    assert torch.equal(first, second)
    for name, a, b in zip(NAMES, gradients, again, strict=True):
        assert torch.equal(a, b), name


def check_expanded_cotangent(device):
    tensors = [t.to(device) for t in inputs(length=9)]
    dy = torch.ones(1, 1, 1, device=device).expand(1, 9, 5)
    (_, got), (_, same) = (scan(g, tensors, True, path(length=9)) for g in (dy, dy.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))


def check_nan(device):
    from rsmamba_kernels.selective_scan import triton

    tensors = [t.to(device) for t in inputs()]
    tensors[0][0, 0, 6, 3] = torch.nan
    y = triton.forward(*tensors, True, *path())
    assert y[0, 6:, 3].isnan().all()
    assert y.isnan().sum() == 4


def check_refusals(device):
    from rsmamba_kernels.selective_scan import triton

    with pytest.raises(ValueError, match=r"A .* states"):
        triton.forward(*inputs(n=3), True, *path())
    with pytest.raises(ValueError, match=r"u .* directions"):
        triton.forward(*inputs(k=16, length=1), True, *path([0] * 16))
    with pytest.raises(ValueError, match="32 bits"):
        huge = torch.empty(1, 1, 2**20, 4096, device="meta")
        triton.Scan(huge, huge, *inputs()[2:], True, *path())


GRIDS = [(7, 7), (5, 9), (1, 12)]
CASES = {
    **{
        f"every order, {h} x {w}, class token {cls}": partial(check_orders, grid=(h, w), cls=cls)
        for (h, w), cls in product(GRIDS, ("none", "middle", "first"))
    },
    **{
        f"{n} states": partial(check, tensors=inputs(n=n), way=path(length=10))
        for n in (1, 4, 8, 16)
    },
    **{
        f"{length} steps": partial(check, tensors=inputs(length=length), way=path(length=length))
        for length in (1, 2, 7, 8, 9, 17)
    },
    **{
        f"{d} channels of 2 images": partial(check, tensors=inputs(b=2, d=d, n=1), way=path())
        for d in (1, 21, 64, 70)
    },
    # More than scan_steps arranges in one program.
    "70 steps along columns": partial(
        check, tensors=inputs(length=71, d=3, n=1), way=path((3,), (7, 10), "middle")
    ),
    **{
        f"{str(dtype)[6:]}, {k} directions": partial(check_dtype, dtype=dtype, k=k, n=n)
        for dtype, (k, n) in product((torch.bfloat16, torch.float16), ((1, 8), (3, 4)))
    },
    "bfloat16, directions added up": partial(
        check_dtype, dtype=torch.bfloat16, k=3, n=1, **ADDED_UP
    ),
    "directions added up": partial(check_dtype, dtype=torch.float32, k=3, n=4, **ADDED_UP),
    "directions one at a time": partial(
        check_dtype, dtype=torch.float32, k=3, n=1, **ONE_AT_A_TIME
    ),
    "two directions of three at a time": partial(
        check_dtype, dtype=torch.float32, k=3, n=1, _SCRATCH=2 * 4 * 2 * 2 * 6
    ),
    "a direction twice": partial(check, tensors=inputs(k=2), way=path((1, 1))),
    **{
        f"without {', '.join([*missing, *(() if softplus else ('softplus',))])}": partial(
            check_without, missing=missing, softplus=softplus
        )
        for missing, softplus in [
            (("D",), True),
            (("dt_bias",), True),
            (("D", "dt_bias"), True),
            ((), False),
            (("dt_bias",), False),
        ]
    },
    **{
        f"raw steps of {raw:g}, decay rates of {rate:g}": partial(
            check_extremes, raw=raw, rate=rate
        )
        for raw, rate in product((-30.0, 30.0), (-1e-4, -64.0))
    },
    "raw steps that are infinite": partial(check_extremes, raw=-torch.inf, rate=-1.0),
    **{
        f"slices {offset} numbers into {str(dtype)[6:]} rows": partial(
            check_strides, offset=offset, dtype=dtype
        )
        for offset, dtype in ((5, torch.bfloat16), (4, torch.float32), (3, torch.float32))
    },
    "two runs agree to the last bit": check_repeats,
    "an expanded cotangent": check_expanded_cotangent,
    "a NaN spoils its channel from its step on and nothing else": check_nan,
    "what the kernels do not take": check_refusals,
}

#: Too large for the interpreter.
LARGE_CASES = {
    **{
        f"{length} steps": partial(
            check, tensors=inputs(1, 2, length, 200, 16), way=path(length=length)
        )
        for length in (197, 1025, 4096)
    },
    **{
        f"RoMA-B, {str(dtype)[6:]}": partial(check_roma, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    },
}


def run(name, device):
    """One case by its name, for :func:`tests.kernels.interpreter.call`."""
    {**CASES, **LARGE_CASES}[name](device)
