"""Several directions at once: the sum, the convolution and the gate of a mixer."""

import pytest
import torch
import torch.nn.functional as F

from rsmamba_kernels import conv1d_silu, cpu, gate, selective_scan, selective_scan_multi
from rsmamba_kernels.bench import Clock
from rsmamba_kernels.order import scan_index
from tests.kernels.cases import (
    convolution_inputs,
    gate_inputs,
    multi_inputs,
    needs_library,
    randn,
    relative_error,
    run,
)

ORDERS = [(0,), (3,), (0, 1), (2, 1, 3), (0, 1, 2, 3)]
#: (grid, class token)
PLACES = [((4, 5), "none"), ((5, 3), "middle"), ((1, 12), "first"), ((7, 7), "middle")]


def tokens(grid, cls):
    return grid[0] * grid[1] + (cls != "none")


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize(("grid", "cls"), PLACES)
def test_the_directions_add_up_with_their_gradients(backend, orders, grid, cls):
    inputs = multi_inputs(b=2, length=tokens(grid, cls), d=9, n=4, k=len(orders))
    place = {"grid": grid, "cls": cls}

    def one_by_one(*, backend, **tensors):
        return sum(
            selective_scan(**{n: t[k] for n, t in tensors.items()}, order=order, **place)
            for k, order in enumerate(orders)
        )

    y, grads = run(selective_scan_multi, inputs, backend, orders=orders, **place)
    wanted, wanted_grads = run(one_by_one, inputs, None, dtype=torch.float64)
    assert relative_error(y, wanted) <= 2e-6
    for name, grad in grads.items():
        assert relative_error(grad, wanted_grads[name]) <= 5e-6, name


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize(("grid", "cls"), PLACES)
def test_the_convolution_follows_the_order(backend, orders, grid, cls, taps):
    length = tokens(grid, cls)
    inputs = convolution_inputs(2, length, 9, len(orders), taps)

    def with_torch(*, backend, x, weight, bias):
        outputs = []
        for k, order in enumerate(orders):
            index = scan_index(length, order, grid, cls)
            row = F.pad(x[:, index].transpose(1, 2), (taps - 1, 0))
            row = F.conv1d(row, weight[k].unsqueeze(1), bias[k], groups=x.shape[2])
            outputs.append(F.silu(row.transpose(1, 2))[:, torch.argsort(index)])
        return torch.stack(outputs)

    options = {"orders": orders, "grid": grid, "cls": cls}
    out, grads = run(conv1d_silu, inputs, backend, **options)
    wanted, wanted_grads = run(with_torch, inputs, None, dtype=torch.float64)
    assert relative_error(out, wanted) <= 2e-6
    for name, grad in grads.items():
        assert relative_error(grad, wanted_grads[name]) <= 5e-6, name


def test_a_convolution_without_bias():
    inputs = convolution_inputs()
    del inputs["bias"]
    plain = conv1d_silu(**inputs, orders=(0, 1, 2, 3), grid=(4, 5))
    zero = conv1d_silu(**inputs, bias=torch.zeros(4, 21), orders=(0, 1, 2, 3), grid=(4, 5))
    torch.testing.assert_close(plain, zero)


def test_a_token_depends_on_those_before_it_in_the_order_only():
    inputs = convolution_inputs(b=1, length=20, d=3, k=2)
    changed = inputs["x"].clone()
    changed[0, 7] += 1
    options = {"orders": (0, 1), "grid": (4, 5)}
    difference = conv1d_silu(**inputs, **options) - conv1d_silu(
        **inputs | {"x": changed}, **options
    )
    touched = difference.abs().amax((1, 3)) > 0
    assert touched[0].nonzero().flatten().tolist() == [7, 8, 9, 10]
    assert touched[1].nonzero().flatten().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_gate_with_its_gradients(scale):
    inputs = gate_inputs()

    def by_hand(*, backend, y, z):
        return scale * y * z / (1 + torch.exp(-z))

    y, grads = run(gate, inputs, "auto", scale=scale)
    wanted, wanted_grads = run(by_hand, inputs, None, dtype=torch.float64)
    assert relative_error(y, wanted) <= 2e-6
    for name, grad in grads.items():
        assert relative_error(grad, wanted_grads[name]) <= 5e-6, name


@pytest.mark.skipif(not cpu.supported_isas(), reason="the C++ library is not built")
@needs_library
def test_no_copy_of_the_sequence_is_made():
    """What a call without gradients allocates: its output, and nothing of that size beside."""
    inputs = multi_inputs(b=2, length=401, d=64, n=4)
    x = randn(2, 401, 64)
    weight = randn(4, 64, 4)
    path = {"grid": (20, 20), "cls": "middle", "backend": "cpu"}
    for call, output in (
        (lambda: selective_scan_multi(**inputs, **path), x.numel()),
        (lambda: conv1d_silu(x, weight, orders=(0, 1, 2, 3), **path), 4 * x.numel()),
    ):
        call()
        assert 4 * output <= Clock("cpu").peak(call) < 4 * output + 4 * x.numel() / 2
