"""State fusion: golden values and gradients for both paddings, fresh weights at every call."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rsmamba_kernels import BackendError, state_fusion
from tests.golden import RTOL, fixture, normal, tensor

FIXTURE = fixture("op_state_fusion")
CASES = sorted({name.split(".")[0] for name in FIXTURE.meta["tensors"]})
KERNELS = ("kernel_3", "kernel_3_1", "kernel_3_2")
PADDING = {"train": "replicate", "eval": "zeros"}


def fuse(h, kernels, alpha, padding):
    """The bare fusion of channels-last states: C = 1, D = 0."""
    ones = torch.ones_like(h[..., :1])
    return state_fusion(h, h, ones, torch.zeros_like(h[0, 0, 0]), *kernels, alpha, padding=padding)


def golden_arguments(case, dtype):
    shape = FIXTURE.meta["tensors"][f"{case}.train.out"]["shape"]
    prefix = f"op:fusion:{case}:"
    h = tensor(f"{prefix}h", shape, dtype).permute(0, 2, 3, 1).contiguous().requires_grad_()
    # These names hold no dot, so the recipe's last rule applies to all of them: normal / sqrt(fan).
    weights = {
        key: torch.from_numpy(normal(prefix + key, size) * np.float32(1 / math.sqrt(fan))).to(dtype)
        for key, size, fan in [
            ("alpha", (3,), 3),
            *((kernel, (shape[1], 1, 3, 3), 9) for kernel in KERNELS),
        ]
    }
    weights = {k: v.requires_grad_() for k, v in weights.items()}
    return h, weights, tensor(f"{prefix}dout", shape, dtype).permute(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", PADDING)
@pytest.mark.parametrize("case", CASES)
def test_matches_golden_output_and_gradients(case, mode, dtype):
    h, weights, cotangent = golden_arguments(case, dtype)
    kernels = [weights[k].squeeze(1) for k in KERNELS]
    y = fuse(h, kernels, weights["alpha"], PADDING[mode])
    FIXTURE.assert_close(f"{case}.{mode}.out", y.permute(0, 3, 1, 2), RTOL[dtype])
    y.backward(cotangent)
    grad_h = h.grad.permute(0, 3, 1, 2)
    FIXTURE.assert_close(f"{case}.{mode}.grad.h", grad_h, RTOL[dtype])
    for name, leaf in weights.items():
        FIXTURE.assert_close(f"{case}.{mode}.grad.{name}", leaf.grad, RTOL[dtype])


@pytest.mark.parametrize("case", CASES)
def test_zero_padding_is_the_published_merged_kernel(case):
    h, weights, _ = golden_arguments(case, torch.float64)
    merged = FIXTURE.full(f"{case}.merged_kernel")
    expected = F.conv2d(h.permute(0, 3, 1, 2), merged, padding=5, groups=merged.shape[0])
    y = fuse(h, [weights[k].squeeze(1) for k in KERNELS], weights["alpha"], "zeros")
    torch.testing.assert_close(y.permute(0, 3, 1, 2), expected, rtol=1e-9, atol=1e-12)


def random_arguments(height, width, dim=3, batch=2):
    g = torch.Generator().manual_seed(height * 100 + width)

    def n(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    h, x = n(2, batch, height, width, dim)
    C, D, alpha = n(batch, height, width, 1), n(dim), n(3)
    return [h, x, C, D, *n(3, dim, 3, 3), alpha]


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 1), (7, 9), (13, 20)])
def test_is_the_sum_of_dilated_taps_on_any_grid(grid, padding):
    h, x, C, D, *kernels, alpha = random_arguments(*grid)
    height, width = grid
    expected = (D * x).numpy().copy()
    for dilation, kernel, share in zip((1, 3, 5), kernels, alpha, strict=True):
        for (i, j), _ in np.ndenumerate(np.empty((3, 3))):
            rows = np.arange(height) + (i - 1) * dilation
            columns = np.arange(width) + (j - 1) * dilation
            inside = np.logical_and.outer(
                rows == rows.clip(0, height - 1), columns == columns.clip(0, width - 1)
            )
            taken = h.numpy()[:, rows.clip(0, height - 1)][:, :, columns.clip(0, width - 1)]
            if padding == "zeros":
                taken = taken * inside[..., None]
            expected += (C * share * kernel[:, i, j]).numpy() * taken
    actual = state_fusion(h, x, C, D, *kernels, alpha, padding=padding)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changed", [4, 5, 6, 7])
def test_weights_changed_in_place_take_effect_at_once(changed):
    # The published code merges the kernels at the first evaluation and never again.
    arguments = random_arguments(5, 6)
    with torch.no_grad():
        before = state_fusion(*arguments)
        arguments[changed].mul_(2)
        after = state_fusion(*arguments)
    fresh = state_fusion(*(t.clone() for t in arguments))
    assert torch.equal(after, fresh)
    assert (after - before).abs().max() > 0.1


def test_gradcheck_of_every_argument():
    arguments = [t.requires_grad_() for t in random_arguments(3, 4, dim=2, batch=1)]
    assert torch.autograd.gradcheck(state_fusion, arguments)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_inputs_are_summed_in_float32(autocast):
    arguments = random_arguments(9, 8, dim=4)
    rounded = [t.bfloat16() for t in arguments[:3]] + [t.float() for t in arguments[3:]]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = state_fusion(*rounded)
    exact = state_fusion(*(t.double() for t in rounded))
    assert y.dtype == torch.bfloat16
    # One rounding of the result (Triton's interpreter cuts off), none of the three partial sums.
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=1e-5)


def test_rejects_unknown_padding_backends_and_shapes_that_would_broadcast():
    arguments = random_arguments(4, 6)
    with pytest.raises(ValueError, match="reflect"):
        state_fusion(*arguments, padding="reflect")
    with pytest.raises(BackendError, match="reference"):
        state_fusion(*arguments, backend="abacus")
    for position, wrong in ((2, arguments[0]), (3, arguments[3][:1]), (5, arguments[5][:1])):
        changed = [*arguments]
        changed[position] = wrong
        with pytest.raises(ValueError, match="state_fusion"):
            state_fusion(*changed)
