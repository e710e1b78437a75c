"""What every operator must do on its Triton kernels, through its public function."""

from contextlib import contextmanager
from functools import partial

import torch

from rsmamba_kernels import dispatch
from tests.kernels.cases import OPERATORS, convolution_inputs, gate_inputs, relative_error, run

#: Small enough for the interpreter; channels fill no whole block.
SMALL = {
    "selective_scan": {"b": 1, "length": 11, "d": 5, "n": 4},
    "selective_scan_multi": {"b": 1, "length": 12, "d": 5, "n": 4, "k": 4},
    "state_scan": {"b": 1, "h": 3, "w": 4, "d": 5},
    "state_fusion": {"b": 1, "h": 3, "w": 7, "d": 5},
    "conv1d_silu": {"b": 2, "length": 12, "d": 5},
    "gate": {"b": 2, "length": 5, "d": 11},
}
OPTIONS = {"selective_scan_multi": {"grid": (3, 4)}, "conv1d_silu": {"grid": (3, 4)}}
#: Kept in float32 beside 16-bit activations.
PARAMETERS = {"A", "D", "dt_bias", "k1", "k3", "k5", "alpha", "weight", "bias"}


@contextmanager
def poisoned():
    """Uninitialised memory is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def available(name):
    """Whether the operator has Triton kernels."""
    entry = "selective_scan" if name == "selective_scan_multi" else name
    return "triton" in dispatch.entry(entry).backends


def on(device, inputs):
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def check(device, name, inputs=None, **options):
    """Outputs and gradients in float32."""
    function, make = OPERATORS[name]
    inputs = on(device, inputs or make(**SMALL[name]))
    options = OPTIONS.get(name, {}) | options
    with poisoned():
        y, grads = run(function, inputs, "triton", **options)
    wanted, wanted_grads = run(function, inputs, "reference", dtype=torch.float64, **options)
    assert relative_error(y, wanted) <= 2e-6
    for key, grad in grads.items():
        assert grad.shape == inputs[key].shape
        assert relative_error(grad, wanted_grads[key]) <= 5e-6, key


def check_16_bits(device, name, dtype):
    """Rounded activations, float32 parameters, against float64 of the same numbers."""
    function, make = OPERATORS[name]
    inputs = {
        key: t if key in PARAMETERS else t.to(dtype)
        for key, t in on(device, make(**SMALL[name])).items()
    }
    options = OPTIONS.get(name, {})
    leaves = {key: t.clone().requires_grad_() for key, t in inputs.items()}
    y = function(**leaves, **options, backend="triton")
    assert y.dtype == dtype
    cotangent = torch.linspace(-1, 1, y.numel(), device=device).view(y.shape).to(dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
    exact = {key: t.detach().double().requires_grad_() for key, t in inputs.items()}
    wanted = function(**exact, **options, backend="reference")
    wanted_grads = torch.autograd.grad(wanted, list(exact.values()), cotangent.double())
    assert (y - wanted).norm() <= 5e-3 * wanted.norm()
    for key, grad, expected in zip(inputs, grads, wanted_grads, strict=True):
        assert grad.dtype == inputs[key].dtype
        assert (grad - expected).norm() <= 1e-2 * expected.norm(), key


def check_same_bits(device, name):
    function, make = OPERATORS[name]
    inputs = on(device, make(**SMALL[name]))
    first, second = (run(function, inputs, "triton", **OPTIONS.get(name, {})) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][key], second[1][key]) for key in inputs)


def check_path(device, orders, grid, cls, taps):
    length = grid[0] * grid[1] + (cls != "none")
    inputs = convolution_inputs(1, length, 5, len(orders), taps)
    check(device, "conv1d_silu", inputs, orders=orders, grid=grid, cls=cls)


def check_no_bias(device):
    inputs = convolution_inputs(1, 12, 5)
    del inputs["bias"]
    check(device, "conv1d_silu", inputs)


def check_strided(device):
    """x and z are halves of a wider row, as in a mixer."""
    inputs = convolution_inputs(2, 12, 5)
    wide = torch.cat([inputs["x"], inputs["x"]], -1).to(device)
    function, _ = OPERATORS["conv1d_silu"]
    rest = on(device, {key: inputs[key] for key in ("weight", "bias")})
    got = function(x=wide[..., 5:], **rest, grid=(3, 4), backend="triton")
    assert torch.equal(
        got, function(x=wide[..., 5:].contiguous(), **rest, grid=(3, 4), backend="triton")
    )
    y, z = on(device, gate_inputs(2, 12, 10)).values()
    function, _ = OPERATORS["gate"]
    got = function(y=y[..., :5], z=z[..., 5:], backend="triton")
    wanted = function(y=y[..., :5].contiguous(), z=z[..., 5:].contiguous(), backend="triton")
    assert torch.equal(got, wanted)


CASES = {
    **{f"{name} in float32": partial(check, name=name) for name in OPERATORS},
    **{
        f"{name} in {dtype}": partial(check_16_bits, name=name, dtype=dtype)
        for name in OPERATORS
        for dtype in (torch.bfloat16, torch.float16)
    },
    **{f"{name} twice": partial(check_same_bits, name=name) for name in OPERATORS},
    **{
        f"conv1d_silu, orders {orders} on {grid}, {cls}, {taps} taps": partial(
            check_path, orders=orders, grid=grid, cls=cls, taps=taps
        )
        for orders, grid, cls, taps in (
            ((0, 1, 2, 3), (3, 5), "middle", 4),
            ((3, 2), (4, 3), "first", 3),
            ((2,), (1, 9), "none", 2),
            ((1,), (9, 1), "middle", 1),
            ((0, 1, 2, 3), (5, 9), "middle", 4),
            ((1, 0, 1), (2, 4), "none", 4),
        )
    },
    "conv1d_silu without bias": check_no_bias,
    "rows of a wider tensor": check_strided,
}


def run_case(name, device):
    CASES[name](device)
