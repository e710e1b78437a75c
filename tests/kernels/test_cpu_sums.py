"""The C++ kernels on large images: sums over many steps, and paths that leave the sequence."""

import functools

import pytest
import torch

from rsmamba_kernels import conv1d_silu, cpu, selective_scan, state_fusion, state_scan
from rsmamba_kernels.conv1d_silu import cpu as conv1d_silu_cpu
from rsmamba_kernels.selective_scan import cpu as selective_scan_cpu
from tests.kernels.cases import (
    convolution_inputs,
    fusion_inputs,
    needs_library,
    relative_error,
    run,
    scan_inputs,
    state_inputs,
)

#: Largest error relative to the largest magnitude of the tensor; that of gradients must hold for
#: any size, so it must not grow with the number of steps.
OUTPUT, GRADIENT = 2e-6, 5e-6
#: Of parameters, whose gradients are sums of one term per step. A single float32 sum is off by
#: 1e-6 to 3e-6 after 4096 terms, by up to 1e-5 after 40000.
SUM = 2e-6

convolve = functools.partial(conv1d_silu, orders=(0, 1, 2, 3))
CASES = {
    "state_scan 200 x 200": (state_scan, state_inputs(1, 200, 200, 17), {}),
    "state_fusion 200 x 200": (state_fusion, fusion_inputs(1, 200, 200, 17), {}),
    "selective_scan 4096": (selective_scan, scan_inputs(1, 4096, 17, 16), {}),
    "selective_scan 200 x 200": (selective_scan, scan_inputs(1, 40000, 5, 4), {}),
    "conv1d_silu 4096": (convolve, convolution_inputs(1, 4096, 17), {"grid": (64, 64)}),
    "conv1d_silu 200 x 200": (convolve, convolution_inputs(1, 40000, 5), {"grid": (200, 200)}),
}


@functools.cache
def exact(name):
    """Output and gradients in float64."""
    operator, inputs, options = CASES[name]
    return run(operator, inputs, "reference", dtype=torch.float64, **options)


@needs_library
@pytest.mark.parametrize("isa", cpu.supported_isas())
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_as_exact_on_large_images(name, isa, monkeypatch):
    monkeypatch.setenv(cpu.ISA_ENVIRONMENT, isa)
    operator, inputs, options = CASES[name]
    y, grads = run(operator, inputs, "cpu", **options)
    wanted, wanted_grads = exact(name)
    assert relative_error(y, wanted) <= OUTPUT
    for key, grad in grads.items():
        # The decays' own error, one sign for all steps, is part of dA.
        sums = key in ("D", "dt_bias", "weight", "bias")
        bar = SUM if sums else GRADIENT
        assert relative_error(grad, wanted_grads[key]) <= bar, key


@needs_library
@pytest.mark.parametrize(("height", "width"), [(5, 9), (3, 5), (0, 20), (-4, -5)])
@pytest.mark.parametrize("order", [2, 3])
def test_a_path_outside_the_sequence_is_refused(order, height, width):
    """Public functions check the grid; kernels, called as custom operations, protect memory."""
    path = ([order], height, width, -1)
    scan = [t.unsqueeze(0) for t in scan_inputs(length=20).values()]
    with pytest.raises(RuntimeError, match=r"SCAN_FORWARD.*3"):
        selective_scan_cpu.forward(*scan, True, *path)
    dy = torch.ones(scan[0].shape[1:])
    with pytest.raises(RuntimeError, match=r"SCAN_BACKWARD.*3"):
        selective_scan_cpu.backward(dy, *scan, True, *path)
    convolution = convolution_inputs(length=20, k=1).values()
    with pytest.raises(RuntimeError, match=r"CONVOLUTION_FORWARD.*3"):
        conv1d_silu_cpu.forward(*convolution, *path)
    with pytest.raises(RuntimeError, match=r"CONVOLUTION_BACKWARD.*3"):
        conv1d_silu_cpu.backward(torch.ones(1, *dy.shape), *convolution, *path)
