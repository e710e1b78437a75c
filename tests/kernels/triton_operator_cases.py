"""What every operator must do on its Triton kernels, through its public function.

Blocks, strips, tiles and parts have ends of their own: each kind of end is in some case.
"""

from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from unittest import mock

import torch

from tests.kernels.cases import (
    OPERATORS,
    convolution_inputs,
    fusion_inputs,
    gate_inputs,
    multi_inputs,
    randn,
    relative_error,
    state_inputs,
)

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
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


@contextmanager
def poisoned():
    """Uninitialised memory is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def changed(name, values):
    """Other values for constants of the operator's module."""
    module = f"rsmamba_kernels.{name.removesuffix('_multi')}.triton"
    return mock.patch.multiple(module, **values) if values else nullcontext()


def small(name, device, dtype=FLOAT32):
    """The operator, small inputs and options."""
    function, make = OPERATORS[name]
    return function, placed(make(**SMALL[name]), device, dtype), OPTIONS.get(name, {})


def placed(inputs, device, dtype=FLOAT32):
    """Inputs on a device, activations in a dtype."""
    return {key: t.to(device, FLOAT32 if key in PARAMETERS else dtype) for key, t in inputs.items()}


def derive(function, inputs, options, backend, dtype=FLOAT32):
    """Output and gradients; the cotangent has the numbers of the dtype."""
    leaves = {key: t.detach().requires_grad_() for key, t in inputs.items()}
    y = function(**leaves, **options, backend=backend)
    cotangent = randn(*y.shape, seed=9).to(dtype).to(y)
    return y.detach(), dict(
        zip(leaves, torch.autograd.grad(y, list(leaves.values()), cotangent), strict=True)
    )


def check(device, name, inputs=None, dtype=FLOAT32, slack=1, changes=None, **options):
    """Output and gradients against float64 of the same numbers.

    ``slack`` widens the tolerance of the gradients, ``changes`` are other values for constants of
    the operator's module.
    """
    function, make = OPERATORS[name]
    inputs = placed(inputs or make(**SMALL[name]), device, dtype)
    options = OPTIONS.get(name, {}) | options
    with poisoned(), changed(name, changes):
        y, grads = derive(function, inputs, options, "triton", dtype)
    exact = {key: t.double() for key, t in inputs.items()}
    wanted, wanted_grads = derive(function, exact, options, "reference", dtype)
    assert_close("output", y, wanted, dtype, 2e-6, 5e-3)
    for key, grad in grads.items():
        assert_close(key, grad, wanted_grads[key], inputs[key].dtype, slack * 5e-6, 1e-2, dtype)


def assert_close(name, got, wanted, own, tolerance, tolerance_16, dtype=None):
    """By the largest error where everything has 32 bits, else by its root mean square."""
    assert got.dtype == own and got.shape == wanted.shape, name
    if (dtype or own) == FLOAT32:
        error = relative_error(got, wanted)
    else:
        tolerance, size = tolerance_16, wanted.norm().item()
        error = (got - wanted).norm().item() / (size or 1)
    assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"


def check_same_bits(device, name):
    function, inputs, options = small(name, device)
    first, second = (derive(function, inputs, options, "triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][key], second[1][key]) for key in inputs)


def check_strided(device, name):
    """Activations that are parts of wider rows, as in a mixer; every row has another width."""
    function, inputs, options = small(name, device)
    wide = {
        key: t if key in PARAMETERS else torch.cat([randn(*t.shape[:-1], i + 1).to(t), t, t], -1)
        for i, (key, t) in enumerate(inputs.items())
    }
    parts = {
        key: t if key in PARAMETERS else t[..., i + 1 : i + 1 + inputs[key].shape[-1]]
        for i, (key, t) in enumerate(wide.items())
    }
    y, grads = derive(function, parts, options, "triton")
    same, same_grads = derive(function, inputs, options, "triton")
    assert torch.equal(y, same)
    assert all(torch.equal(grads[key], same_grads[key]) for key in inputs)


def check_without(device, name, missing, dtype=FLOAT32, **options):
    """Without optional tensors."""
    _, make = OPERATORS[name]
    inputs = make(**SMALL[name])
    if not options.get("softplus", True):
        inputs = {k: t.abs() if k in ("dt", "dt_bias") else t for k, t in inputs.items()}
    given = {key: t for key, t in inputs.items() if key not in missing}
    check(device, name, given, dtype, **options)


def check_path(device, orders, grid, cls, taps):
    length = grid[0] * grid[1] + (cls != "none")
    inputs = convolution_inputs(1, length, 5, len(orders), taps)
    check(device, "conv1d_silu", inputs, orders=orders, grid=grid, cls=cls)


def check_roma_convolution(device, dtype):
    inputs = convolution_inputs(4, 197, 768)
    check(device, "conv1d_silu", inputs, dtype, grid=(14, 14), cls="middle")


def check_fusion(device, padding, grid, d, dtype=FLOAT32, few=None, b=2):
    """``few`` programs or more: they walk down the whole image if there are so many anyway."""
    changes = None if few is None else {"_FEW_PROGRAMS": few}
    inputs = fusion_inputs(b, *grid, d)
    check(device, "state_fusion", inputs, dtype, changes=changes, padding=padding)


def check_states(device, grid, d, dtype=FLOAT32, changes=None, b=2):
    check(device, "state_scan", state_inputs(b, *grid, d), dtype, changes=changes)


def check_extreme_steps(device, raw, dtype):
    """Step sizes for which softplus is a line, or nearly or exactly nothing."""
    inputs = state_inputs(2, 3, 7, 5)
    inputs["dt"] = raw + 0.1 * inputs["dt"]
    # Where whole states decay at once, their gradients are sums of what is left.
    check(device, "state_scan", inputs, dtype, slack=2)


def check_gate(device, shape, dtype, size=1.0):
    """``size`` of the numbers that pass through the sigmoid."""
    inputs = gate_inputs(*shape)
    inputs["z"] *= size
    check(device, "gate", inputs, dtype, scale=0.25)


def check_few_images(device, name, inputs, most, **options):
    """Batches of more images than a grid has programs, here of more than ``most``."""
    check(device, name, inputs, changes={"MOST_PROGRAMS": most}, **options)


#: Grid and channels of 2 images: less than a strip or block, one, several, the last one cut.
FUSION_SHAPES = (
    ((1, 1), 3),
    ((3, 1), 33),
    ((1, 20), 35),
    ((19, 3), 3),
    ((35, 4), 3),
    ((17, 18), 35),
    ((16, 3), 4),
)
#: Stages of Spatial-Mamba-T.
STAGES = ((56, 128), (28, 256), (14, 512), (7, 1024))
PADDINGS = ("replicate", "zeros")

EVERY = {
    **{f"{name} in float32": partial(check, name=name) for name in OPERATORS},
    **{
        f"{name} in {dtype}": partial(check, name=name, dtype=dtype)
        for name, dtype in product(OPERATORS, (BFLOAT16, FLOAT16))
    },
    **{f"{name} twice": partial(check_same_bits, name=name) for name in OPERATORS},
    **{f"{name} of parts of rows": partial(check_strided, name=name) for name in OPERATORS},
}
CONVOLUTIONS = {
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
    "conv1d_silu without bias": partial(check_without, name="conv1d_silu", missing=("bias",)),
    **{
        f"conv1d_silu of 70 channels in {dtype}": partial(
            check,
            name="conv1d_silu",
            inputs=convolution_inputs(2, 12, 70, 2),
            dtype=dtype,
            orders=(0, 3),
        )
        for dtype in (FLOAT32, BFLOAT16)
    },
}
FUSIONS = {
    **{
        f"state_fusion of {d} channels on {grid}, {padding}": partial(
            check_fusion, padding=padding, grid=grid, d=d
        )
        for (grid, d), padding in product(FUSION_SHAPES, PADDINGS)
    },
    **{
        f"state_fusion with {few} programs on {grid} in {dtype}, {padding}": partial(
            check_fusion, padding=padding, grid=grid, d=d, dtype=dtype, few=few
        )
        for (grid, d, dtype, few), padding in product(
            (
                ((19, 3), 3, FLOAT32, 1),
                ((19, 3), 3, FLOAT32, 2),
                ((35, 4), 3, FLOAT32, 1),
                ((16, 3), 3, BFLOAT16, 1),
            ),
            PADDINGS,
        )
    },
}
STATES = {
    **{
        f"state_scan of {d} channels on {grid} in {dtype}": partial(
            check_states, b=b, grid=grid, d=d, dtype=dtype
        )
        for b, grid, d, dtype in (
            (2, (1, 1), 3, FLOAT32),
            (2, (24, 25), 3, FLOAT32),
            (1, (5, 26), 70, FLOAT32),
            (2, (10, 25), 70, FLOAT32),
            (1, (3, 5), 300, FLOAT32),
            (1, (5, 26), 70, BFLOAT16),
        )
    },
    "state_scan with fewer threads": partial(
        check_states, grid=(6, 11), d=70, changes={"_FEW_PROGRAMS": 0}
    ),
    **{
        f"state_scan, without {missing or 'nothing'}, softplus {softplus}, in {dtype}": partial(
            check_without, name="state_scan", missing=missing, dtype=dtype, softplus=softplus
        )
        for missing, softplus, dtype in (
            (("dt_bias",), True, FLOAT32),
            ((), False, FLOAT32),
            (("dt_bias",), False, FLOAT32),
            ((), False, BFLOAT16),
        )
    },
    **{
        f"state_scan with raw steps of {raw:g} in {dtype}": partial(
            check_extreme_steps, raw=raw, dtype=dtype
        )
        for raw, dtype in product((-30.0, 30.0), (FLOAT32, BFLOAT16))
    },
    "state_scan with infinite raw steps": partial(
        check_extreme_steps, raw=-torch.inf, dtype=FLOAT32
    ),
}
GATES = {
    f"gate of {shape}, {size:g} times, in {dtype}": partial(
        check_gate, shape=shape, dtype=dtype, size=size
    )
    for shape, size, dtype in (
        ((2, 5, 257), 1, FLOAT32),
        ((2, 5, 257), 1, BFLOAT16),
        ((2, 20, 192), 1, FLOAT32),
        ((1, 3, 40), 60, FLOAT32),
        ((1, 3, 40), 60, BFLOAT16),
    )
}

#: More images than a grid has programs along an axis; of 1 x 20 pixels a block holds 16.
MANY_IMAGES = {
    "more images than selective_scan has programs": partial(
        check_few_images, name="selective_scan_multi", inputs=multi_inputs(5, 6, 3, 1, 2), most=2,
        orders=(0, 3), grid=(2, 3),
    ),
    "more images than conv1d_silu has programs": partial(
        check_few_images, name="conv1d_silu", inputs=convolution_inputs(5, 6, 3, 2), most=2,
        orders=(0, 3), grid=(2, 3),
    ),
    "more images than state_fusion has programs": partial(
        check_few_images, name="state_fusion", inputs=fusion_inputs(3, 2, 20, 3), most=3,
    ),
}  # fmt: skip
CASES = EVERY | CONVOLUTIONS | FUSIONS | STATES | GATES | MANY_IMAGES
#: Several seconds each.
SLOW = {
    *(f"state_fusion of 35 channels on (17, 18), {padding}" for padding in PADDINGS),
    f"state_scan of 70 channels on (10, 25) in {FLOAT32}",
}

#: Too large for the interpreter: the stages of Spatial-Mamba-T, and RoMA-B.
LARGE_CASES = {
    **{
        f"state_fusion of {d} channels on {n} x {n} in {dtype}, {padding}": partial(
            check_fusion, padding=padding, grid=(n, n), d=d, dtype=dtype, b=4
        )
        for (n, d), dtype, padding in product(STAGES, (FLOAT32, BFLOAT16), PADDINGS)
    },
    **{
        f"state_scan of {d} channels on {n} x {n} in {dtype}": partial(
            check_states, grid=(n, n), d=d, dtype=dtype, b=4
        )
        for (n, d), dtype in product(STAGES, (FLOAT32, BFLOAT16))
    },
    **{
        f"{name} of RoMA-B in {dtype}": partial(case, dtype=dtype)
        for (name, case), dtype in product(
            (
                ("conv1d_silu", check_roma_convolution),
                ("gate", partial(check_gate, shape=(4, 197, 768))),
            ),
            (FLOAT32, BFLOAT16),
        )
    },
}


def run_case(name, device):
    """One case by its name, for :func:`tests.kernels.interpreter.call`."""
    (CASES | LARGE_CASES)[name](device)
