"""Random arguments of every operator, for the tests of what all of them share."""

import pytest
import torch

from rsmamba_kernels import (
    conv1d_silu,
    cpu,
    gate,
    selective_scan,
    selective_scan_multi,
    state_fusion,
    state_scan,
)

needs_library = pytest.mark.skipif(
    not cpu.supported_isas(), reason="the C++ library is not built: pip install -e ."
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def scan_inputs(b=2, length=20, d=21, n=16):
    return {
        "u": randn(b, length, d),
        "dt": 0.5 * randn(b, length, d, seed=1) - 2,
        "A": -torch.exp(randn(d, n)),
        "B": randn(b, length, n, seed=2),
        "C": randn(b, length, n, seed=3),
        "D": randn(d),
        "dt_bias": 0.5 * randn(d, seed=4),
    }


def multi_inputs(b=2, length=20, d=21, n=16, k=4):
    return {
        "u": randn(k, b, length, d),
        "dt": 0.5 * randn(k, b, length, d, seed=1) - 2,
        "A": -torch.exp(randn(k, d, n)),
        "B": randn(k, b, length, n, seed=2),
        "C": randn(k, b, length, n, seed=3),
        "D": randn(k, d),
        "dt_bias": 0.5 * randn(k, d, seed=4),
    }


def state_inputs(b=2, h=5, w=7, d=21):
    return {
        "x": randn(b, h, w, d),
        "dt": 0.5 * randn(b, h, w, d, seed=1) - 2,
        "A": -torch.exp(randn(d)),
        "B": randn(b, h, w, 1, seed=2),
        "dt_bias": 0.5 * randn(d, seed=3),
    }


def fusion_inputs(b=2, h=5, w=7, d=21):
    return {
        "h": randn(b, h, w, d),
        "x": randn(b, h, w, d, seed=1),
        "C": randn(b, h, w, 1, seed=2),
        "D": randn(d, seed=3),
        "k1": randn(d, 3, 3, seed=4),
        "k3": randn(d, 3, 3, seed=5),
        "k5": randn(d, 3, 3, seed=6),
        "alpha": torch.tensor([0.3, -0.5, 0.9]),
    }


def convolution_inputs(b=2, length=20, d=21, k=4, w=4):
    return {
        "x": randn(b, length, d),
        "weight": randn(k, d, w, seed=1),
        "bias": randn(k, d, seed=2),
    }


def gate_inputs(b=2, length=20, d=21):
    return {"y": randn(b, length, d), "z": randn(b, length, d, seed=1)}


def multi(**kwargs):
    """Four directions over a grid of 4 x 5."""
    return selective_scan_multi(**{"grid": (4, 5), **kwargs})


def convolve(**kwargs):
    """Four directions over a grid of 4 x 5."""
    return conv1d_silu(**{"orders": (0, 1, 2, 3), "grid": (4, 5), **kwargs})


#: Name -> (function, its arguments).
OPERATORS = {
    "selective_scan": (selective_scan, scan_inputs),
    "selective_scan_multi": (multi, multi_inputs),
    "state_scan": (state_scan, state_inputs),
    "state_fusion": (state_fusion, fusion_inputs),
    "conv1d_silu": (convolve, convolution_inputs),
    "gate": (gate, gate_inputs),
}


def run(operator, inputs, backend, *, dtype=torch.float32, only=None, **options):
    """Output and gradients (of the inputs named in ``only``) for a fixed cotangent."""
    leaves = {
        name: tensor.to(dtype).requires_grad_(only is None or name in only)
        for name, tensor in ((name, t.detach().clone()) for name, t in inputs.items())
    }
    y = operator(**leaves, **options, backend=backend)
    y.backward(randn(*y.shape, seed=9).to(y))
    return y.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def relative_error(actual, expected):
    scale = expected.abs().max().item()
    error = (actual.double().cpu() - expected.cpu()).abs().max().item()
    return error / scale if scale > 1e-30 else error
