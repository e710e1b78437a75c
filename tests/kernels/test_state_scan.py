"""State scan: golden values and gradients, precision, agreement with the plain recurrence."""

import pytest
import torch

from rsmamba_kernels import BackendError, state_scan, status
from tests.golden import RTOL, fixture, tensor

FIXTURE = fixture("op_state_scan")
GRIDS = {"s49": (7, 7), "s196": (14, 14), "s16_nobias": (2, 8), "s16_nosoft": (4, 4)}


def golden_arguments(case, dtype=torch.float64):
    """Inputs of a fixture case in our layout, and the cotangent."""
    meta = FIXTURE.meta["cases"][case]
    prefix, batch, dim, length = (meta[k] for k in ("name_prefix", "B", "Dim", "L"))
    grid = GRIDS[case]

    def n(name, shape):
        return tensor(prefix + name, shape)

    def image(values):
        return values.transpose(1, 2).unflatten(1, grid)

    dt, bias = n("delta", (batch, dim, length)), n("delta_bias", (dim,))
    if meta["delta_softplus"]:
        dt, bias = 0.5 * dt, -1 + 0.5 * bias
    else:
        dt, bias = 0.1 + 0.05 * dt.abs(), 0.05 + 0.02 * bias.abs()
    arguments = {
        "u": image(n("u", (batch, dim, length))),
        "delta": image(dt),
        # log(1..N) is 0 for the single state.
        "A": -torch.exp(0.1 * n("A", (dim, 1)))[:, 0],
        "B": image(n("B", (batch, 1, length))),
    }
    if meta["delta_bias"]:
        arguments["delta_bias"] = bias
    leaves = {k: v.to(dtype).contiguous().requires_grad_() for k, v in arguments.items()}
    cotangent = image(n("dout", (batch, dim, 1, length)).squeeze(2))
    return leaves, cotangent.to(dtype), bool(meta["delta_softplus"])


def scan(leaves, softplus, **kwargs):
    return state_scan(
        leaves["u"],
        leaves["delta"],
        leaves["A"],
        leaves["B"],
        dt_bias=leaves.get("delta_bias"),
        softplus=softplus,
        **kwargs,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GRIDS)
def test_matches_golden_states_and_gradients(case, dtype):
    leaves, cotangent, softplus = golden_arguments(case, dtype)
    h = scan(leaves, softplus)
    published = h.flatten(1, 2).transpose(1, 2).unsqueeze(2)
    FIXTURE.assert_close(f"{case}.h", published, RTOL[dtype])
    h.backward(cotangent)
    for name, leaf in leaves.items():
        grad = leaf.grad
        if grad.ndim == 4:
            grad = grad.flatten(1, 2).transpose(1, 2)
        elif name == "A":
            grad = grad.unsqueeze(1)
        FIXTURE.assert_close(f"{case}.grad.{name}", grad, RTOL[dtype])


def random_arguments(height, width, dim=3, batch=2):
    g = torch.Generator().manual_seed(height * 100 + width)
    x, dt = torch.randn(2, batch, height, width, dim, generator=g, dtype=torch.float64)
    B = torch.randn(batch, height, width, 1, generator=g, dtype=torch.float64)
    A = -torch.rand(dim, generator=g, dtype=torch.float64) - 0.1
    bias = torch.randn(dim, generator=g, dtype=torch.float64)
    return x, dt, A, B, bias


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 1), (3, 11), (13, 20)])
def test_is_the_raster_recurrence_on_any_grid(grid):
    x, dt, A, B, bias = random_arguments(*grid)
    h = state_scan(x, dt, A, B, dt_bias=bias)
    state = torch.zeros_like(x[:, 0, 0])
    for row in range(grid[0]):
        for column in range(grid[1]):
            step = torch.log1p(torch.exp(dt[:, row, column] + bias))
            state = torch.exp(step * A) * state + step * B[:, row, column] * x[:, row, column]
            torch.testing.assert_close(h[:, row, column], state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("raw", [-30.0, 30.0])
@pytest.mark.parametrize("decay", [-1e-4, -64.0])
def test_extreme_steps_and_decays_stay_finite(raw, decay):
    x, _, _, B, _ = random_arguments(8, 9)
    dt = torch.full_like(x, raw).requires_grad_()
    h = state_scan(x, dt, torch.full((3,), decay, dtype=x.dtype), B)
    h.sum().backward()
    assert h.isfinite().all()
    assert dt.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_keep_a_float32_state(dtype):
    # 2500 steps with almost no decay: a 16-bit state would stop growing early.
    x, dt, A, B, bias = random_arguments(50, 50)
    x, dt, B = (t.abs().to(dtype) * 0.01 for t in (x, dt, B))
    A, bias = A.float() * 1e-4, bias.float()
    h = state_scan(x, dt, A, B, dt_bias=bias)
    exact = state_scan(*(t.double() for t in (x, dt, A, B)), dt_bias=bias.double())
    assert h.dtype == dtype
    error = (h.double() - exact).norm() / exact.norm()
    assert error < 5e-3


def test_gradcheck():
    x, dt, A, B, bias = (t.requires_grad_() for t in random_arguments(2, 3, dim=2, batch=1))
    assert torch.autograd.gradcheck(
        lambda *t: state_scan(*t[:4], dt_bias=t[4]), (x, dt, A, B, bias)
    )


def test_strided_slices_give_the_same_states():
    x, dt, A, B, bias = random_arguments(4, 6)
    packed = torch.cat([x, B, dt], dim=-1)
    sliced = state_scan(packed[..., :3], packed[..., 4:], A, packed[..., 3:4], dt_bias=bias)
    assert torch.equal(sliced, state_scan(x, dt, A, B, dt_bias=bias))


def test_rejects_shapes_that_would_broadcast():
    x, dt, A, B, _ = random_arguments(4, 6)
    with pytest.raises(ValueError, match=r"B has shape .* expected \(2, 4, 6, 1\)"):
        state_scan(x, dt, A, B.expand(-1, -1, -1, 3))
    with pytest.raises(ValueError, match=r"A has shape .* expected \(3,\)"):
        state_scan(x, dt, A[:1], B)


def test_backend_by_name_and_in_status():
    x, dt, A, B, _ = random_arguments(2, 2)
    assert torch.equal(state_scan(x, dt, A, B, backend="reference"), state_scan(x, dt, A, B))
    with pytest.raises(BackendError, match="reference"):
        state_scan(x, dt, A, B, backend="abacus")
    assert {"state_scan", "state_fusion"} <= {entry.operator for entry in status()}
