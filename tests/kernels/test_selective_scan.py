"""The selective scan's reference: golden values, gradients, orders, precision."""

import pytest
import torch
import torch.nn.functional as F

from rsmamba_kernels import selective_scan
from rsmamba_kernels.order import scan_index
from tests.golden import fixture, tensor

CASES = fixture("op_selective_scan").meta["cases"]
GRIDS = [(7, 7), (5, 9), (1, 12), (3, 3)]


def scan(*args, **kwargs):
    return selective_scan(*args, backend="reference", **kwargs)


def golden_inputs(name):
    """Inputs of a golden case, channels last, as leaves; B and C are (B, L, N) or (B, G, L, N)."""
    case, prefix = CASES[name], f"op:scan:{name}:"
    groups = [case["groups"]] if case["groups"] > 1 else []
    b, d, length, n = (case[k] for k in ("B", "Dim", "L", "N"))

    def normal(key, *shape):
        return tensor(prefix + key, shape)

    inputs = {"u": normal("u", b, d, length).transpose(1, 2)}
    delta = normal("delta", b, d, length)
    if case["delta_mode"] == "big":
        delta = 15 * delta
    else:
        delta = 0.5 * delta if case["delta_softplus"] else 0.1 + 0.05 * delta.abs()
    inputs["delta"] = delta.transpose(1, 2)
    states = torch.arange(1, n + 1, dtype=torch.float64).log()
    inputs["A"] = -torch.exp(states + 0.1 * normal("A", d, n))
    for key in "BC":
        inputs[key] = normal(key, b, *groups, n, length).transpose(-1, -2)
    if case["D"]:
        inputs["D"] = 1 + 0.1 * normal("D", d)
    if case["z"]:
        inputs["z"] = normal("z", b, d, length).transpose(1, 2)
    if case["delta_bias"]:
        bias = normal("delta_bias", d)
        inputs["delta_bias"] = (
            -1 + 0.5 * bias if case["delta_softplus"] else 0.05 + 0.02 * bias.abs()
        )
    inputs = {key: value.contiguous().requires_grad_() for key, value in inputs.items()}
    return inputs, normal("dout", b, d, length)


def grouped_scan(inputs, groups, **options):
    """One scan for each group of channels, which have B and C of their own."""
    shares = {
        key: inputs[key].chunk(groups, 0 if key in ("A", "D", "delta_bias") else -1)
        for key in ("u", "delta", "A", "D", "delta_bias")
        if key in inputs
    }
    shares |= {key: inputs[key].unbind(1) if groups > 1 else [inputs[key]] for key in "BC"}
    parts = []
    for g in range(groups):
        part = {key: share[g] for key, share in shares.items()}
        dt, bias = part.pop("delta"), part.pop("delta_bias", None)
        parts.append(scan(**part, dt=dt, dt_bias=bias, **options))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_the_golden_values(name):
    inputs, cotangent = golden_inputs(name)
    y = grouped_scan(inputs, CASES[name]["groups"], softplus=bool(CASES[name]["delta_softplus"]))
    if "z" in inputs:
        y = y * F.silu(inputs["z"])
    out = y.transpose(1, 2)
    golden = fixture("op_selective_scan")
    golden.assert_close(f"{name}.out", out)
    (out * cotangent).sum().backward()
    for key, value in inputs.items():
        last = value.grad if key in ("A", "D", "delta_bias") else value.grad.transpose(-1, -2)
        golden.assert_close(f"{name}.grad.{key}", last)


def random_inputs(b=2, length=12, d=3, n=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    A = -torch.exp(normal(d, n))
    return [normal(b, length, d), normal(b, length, d), A, normal(b, length, n),
            normal(b, length, n), normal(d)], normal(d)  # fmt: skip


def naive(u, dt, A, B, C, D, bias):
    """The definition, one step at a time."""
    dt = torch.log1p(torch.exp(dt + bias))
    h, ys = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype), []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt * u)[:, t, :, None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(ys, 1)


@pytest.mark.parametrize("cls", ["none", "middle", "first"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_orders_equal_explicit_flips_and_transposes(order, grid, cls):
    patches = grid[0] * grid[1]
    inputs, bias = random_inputs(length=patches + (cls != "none"))
    y = scan(*inputs, dt_bias=bias, order=order, grid=grid, cls=cls)

    slot = {"none": None, "middle": patches // 2, "first": 0}[cls]

    def visit(x):
        """Rearrange (B, L, ...) by hand into the order of the scan."""
        if order >= 2:
            token = None if slot is None else x[:, slot : slot + 1]
            rest = x if slot is None else torch.cat([x[:, :slot], x[:, slot + 1 :]], 1)
            rest = rest.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
            x = rest if slot is None else torch.cat([rest[:, :slot], token, rest[:, slot:]], 1)
        return x.flip(1) if order % 2 else x

    u, dt, A, B, C, D = inputs
    expected = naive(visit(u), visit(dt), A, visit(B), visit(C), D, bias)
    torch.testing.assert_close(visit(y), expected, rtol=1e-12, atol=1e-12)


def test_a_scan_in_another_order_is_another_function():
    inputs, bias = random_inputs(length=12)
    outputs = [scan(*inputs, dt_bias=bias, order=k, grid=(3, 4)) for k in range(4)]
    for i in range(4):
        for j in range(i):
            assert (outputs[i] - outputs[j]).abs().max() > 1e-3


def test_the_class_token_stands_in_slot_half_of_the_patches():
    assert scan_index(7, 2, (2, 3), "middle").tolist() == [0, 4, 1, 3, 5, 2, 6]
    assert scan_index(7, 3, (2, 3), "middle").tolist() == [6, 2, 5, 3, 1, 4, 0]


@pytest.mark.parametrize("side", [3, 5, 15])
def test_on_odd_squares_the_published_mixers_slot_gives_the_same_order(side):
    """It looks one slot after ours, but the centre patch stays in the centre when transposed."""
    length = side * side + 1
    index, slot = list(range(length)), length // 2
    patches = torch.tensor(index[:slot] + index[slot + 1 :]).view(side, side).t().flatten().tolist()
    published = [*patches[:slot], slot, *patches[slot:]]
    assert slot != (side * side) // 2
    assert scan_index(length, 2, (side, side), "middle").tolist() == published


@pytest.mark.parametrize("order", [0, 3])
def test_gradients_pass_gradcheck_twice(order):
    inputs, bias = random_inputs(b=1, length=5, d=2, n=2)
    leaves = [t.requires_grad_() for t in [*inputs, bias]]

    def f(*args):
        return scan(*args[:-1], dt_bias=args[-1], order=order, grid=(2, 2), cls="middle")

    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_keep_their_dtype_and_a_wide_state(dtype):
    inputs, bias = random_inputs(length=200, dtype=dtype)
    inputs[2], bias = inputs[2].float(), bias.float()
    y = scan(*inputs, dt_bias=bias)
    exact = scan(*(t.double() for t in inputs), dt_bias=bias.double())
    assert y.dtype == dtype
    # Nothing but the rounding of the result: a 16-bit state would be off by far more.
    assert (y - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("raw", [-30.0, 30.0])
def test_extreme_steps_stay_finite(raw):
    inputs, _ = random_inputs()
    inputs[1] = torch.full_like(inputs[1], raw).requires_grad_()
    y = scan(*inputs)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(inputs[1].grad).all()


def test_wrong_orders_and_grids_are_refused():
    inputs, _ = random_inputs()
    with pytest.raises(ValueError, match="order=4"):
        scan(*inputs, order=4, grid=(3, 4))
    with pytest.raises(ValueError, match="give grid"):
        scan(*inputs, order=2)
    with pytest.raises(ValueError, match="expected 13"):
        scan(*inputs, order=0, grid=(3, 4), cls="middle")


def test_it_compiles_in_one_graph():
    inputs, bias = random_inputs(length=9, dtype=torch.float32)
    f = torch.compile(
        lambda *a: scan(*a, dt_bias=bias, order=2, grid=(3, 3)), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(f(*inputs), scan(*inputs, dt_bias=bias, order=2, grid=(3, 3)))
