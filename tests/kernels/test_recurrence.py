import pytest
import torch

from rsmamba_kernels import recurrence
from rsmamba_kernels.recurrence import linear_recurrence


def naive(decay, drive):
    """One step after the other."""
    state, states = torch.zeros_like(drive[:, 0]), []
    for a, b in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = a * state + b
        states.append(state)
    return torch.stack(states, dim=1)


@pytest.fixture(params=["narrow", "wide"])
def both_forms(request, monkeypatch):
    """Chunked evaluation for narrow steps, step by step for wide ones."""
    monkeypatch.setattr(recurrence, "_WIDE_STEP", 0 if request.param == "wide" else 10**9)


def inputs(length, *rest):
    generator = torch.Generator().manual_seed(length)
    shape = (2, length, *rest)
    decay = torch.rand(shape, dtype=torch.float64, generator=generator)
    drive = torch.randn(shape, dtype=torch.float64, generator=generator)
    return decay.requires_grad_(), drive.requires_grad_()


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 50])
@pytest.mark.usefixtures("both_forms")
def test_states_and_gradients_equal_the_step_by_step_loop(length):
    decay, drive = inputs(length, 3, 2)
    cotangent = torch.randn_like(drive)
    ours = linear_recurrence(decay, drive)
    theirs = naive(decay, drive)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    for mine, true in zip(
        torch.autograd.grad(ours, (decay, drive), cotangent),
        torch.autograd.grad(theirs, (decay, drive), cotangent, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("both_forms")
def test_gradients_of_gradients_are_right():
    decay, drive = inputs(7, 2)
    assert torch.autograd.gradgradcheck(linear_recurrence, (decay, drive))


@pytest.mark.usefixtures("both_forms")
def test_a_vanishing_decay_forgets_exactly():
    decay, drive = inputs(20, 2)
    with torch.no_grad():
        decay[:, 5] = 0
    states = linear_recurrence(decay, drive)
    assert torch.equal(states[:, 5], drive[:, 5])


def test_only_the_drive_may_need_a_gradient():
    decay, drive = inputs(6, 2)
    (gradient,) = torch.autograd.grad(linear_recurrence(decay.detach(), drive).sum(), drive)
    (expected,) = torch.autograd.grad(naive(decay.detach(), drive).sum(), drive)
    torch.testing.assert_close(gradient, expected)
