"""Operators inside torch: opcheck, compile, export, autocast, meta tensors, determinism."""

import os
import subprocess
import sys

import onnxruntime
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from rsmamba_kernels import BackendError, conv1d_silu, cpu, dispatch, selective_scan
from tests.kernels.cases import OPERATORS, needs_library, randn, relative_error, run, scan_inputs

#: Operators that are custom operations somewhere, by the name of the operation.
ENTRIES = ("selective_scan", "state_scan", "state_fusion", "conv1d_silu", "gate")


def arguments(name, backend):
    """Arguments of ``torch.ops.rsmamba.NAME``, from the example that backends are tried on."""
    tensors, options = dispatch.entry(name).example("cpu")
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    return (*leaves, *options, backend)


class Named(nn.Module):
    """A module whose forward is an operator."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, **inputs):
        return self.function(**inputs)


@pytest.fixture(params=OPERATORS)
def operator(request):
    function, make = OPERATORS[request.param]
    return function, make()


@needs_library
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ENTRIES)
def test_opcheck_is_clean(name, backend):
    torch.library.opcheck(
        getattr(torch.ops.rsmamba, name).default, arguments(name, backend), raise_exception=True
    )


@pytest.mark.parametrize("name", ENTRIES)
def test_the_custom_operation_has_the_references_gradients(name):
    """A graph that was made elsewhere may meet a machine without any kernel."""
    *tensors, _ = arguments(name, "reference")
    function = dispatch.entry(name).backends["reference"].function
    leaves = [t for t in tensors if isinstance(t, torch.Tensor)]
    y = getattr(torch.ops.rsmamba, name)(*tensors, "reference")
    wanted = function(*tensors)
    cotangent = randn(*y.shape)
    for got, expected in zip(
        torch.autograd.grad(y, leaves, cotangent),
        torch.autograd.grad(wanted, leaves, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_it_compiles_in_one_graph_with_gradients(operator, backend):
    function, inputs = operator
    wanted, wanted_grads = run(function, inputs, backend)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda **kwargs: function(**kwargs), fullgraph=True, backend="aot_eager"
    )
    y, grads = run(compiled, inputs, backend)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted_grads[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_exports(operator, dtype, strict):
    function, inputs = operator
    inputs = {name: t.to(dtype) for name, t in inputs.items()}

    program = torch.export.export(Named(function), (), inputs, strict=strict)
    torch.testing.assert_close(program.module()(**inputs), function(**inputs))
    calls = [n.target for n in program.graph.nodes if str(n.target).startswith("rsmamba.")]
    # Kernels are opaque, the reference is made of torch's own operations.
    assert not (calls and dtype == torch.float64)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "state_fusion" else pytest.mark.slow) for n in OPERATORS],
)
def test_onnx_export_is_of_operations_that_onnx_knows_and_computes_the_same(name, tmp_path):
    function, make = OPERATORS[name]
    inputs = make()
    program = torch.onnx.export(
        Named(function).eval(), (), kwargs=inputs, dynamo=True, verbose=False
    )
    program.save(tmp_path / "operator.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "operator.onnx")
    feeds = zip(session.get_inputs(), inputs.values(), strict=True)
    (got,) = session.run(None, {slot.name: tensor.numpy() for slot, tensor in feeds})
    assert relative_error(torch.from_numpy(got), function(**inputs, backend="reference")) <= 1e-5


@needs_library
def test_an_exported_program_runs_where_the_kernels_are_missing(monkeypatch, tmp_path):
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    inputs = scan_inputs()
    program = torch.export.export(Named(selective_scan), (), inputs)
    assert any("rsmamba.selective_scan" in str(n.target) for n in program.graph.nodes)
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "missing.so")
    wanted = selective_scan(**inputs, backend="reference")
    torch.testing.assert_close(program.module()(**inputs), wanted)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_one_graph_serves_images_of_many_sizes(backend):
    def convolve(image, weight):
        path = {"orders": (0, 2), "grid": image.shape[1:3], "backend": backend}
        return conv1d_silu(image.flatten(1, 2), weight, **path)

    torch.compiler.reset()
    compiled = torch.compile(convolve, backend="aot_eager", fullgraph=True, dynamic=True)
    weight = randn(2, 8, 4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for height, width in ((6, 11), (7, 3), (9, 5)):
            image = randn(2, height, width, 8)
            torch.testing.assert_close(compiled(image, weight), convolve(image, weight))


@needs_library
def test_a_graph_asks_for_a_backend_where_it_runs(monkeypatch):
    inputs = scan_inputs()
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference")
    taken = []
    resolve = dispatch.resolve
    monkeypatch.setattr(
        dispatch, "resolve",
        lambda *args: taken.append(resolve(*args).name) or resolve(*args),
    )  # fmt: skip
    names = [t for t in inputs if t != "dt_bias"]
    tensors = [inputs[name].unsqueeze(0) for name in names] + [inputs["dt_bias"].unsqueeze(0)]
    for asked, got in (("", "reference"), ("auto", "cpu"), ("cpu", "cpu")):
        taken.clear()
        torch.ops.rsmamba.selective_scan(*tensors, True, [0], 1, 20, -1, asked)
        assert taken in ([got], [])  # a name needs no choice
    with pytest.raises(BackendError, match="nope"):
        torch.ops.rsmamba.selective_scan(*tensors, True, [0], 1, 20, -1, "nope")


def test_forward_mode_derivatives_agree_with_reverse_mode(operator):
    function, inputs = operator
    names, primals = list(inputs), tuple(t.double() for t in inputs.values())
    tangents = tuple(torch.randn_like(t) for t in primals)

    def call(*tensors):
        return function(**dict(zip(names, tensors, strict=True)))

    y, change = torch.func.jvp(call, primals, tangents)
    _, pull = torch.func.vjp(call, *primals)
    cotangent = torch.randn_like(y)
    pulled = sum((a * b).sum() for a, b in zip(pull(cotangent), tangents, strict=True))
    torch.testing.assert_close((change * cotangent).sum(), pulled)


def test_dual_tensors_keep_their_tangents(operator):
    function, inputs = operator
    first = next(iter(inputs))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[first], torch.ones_like(inputs[first]))
        tangent = forward_ad.unpack_dual(function(**inputs | {first: dual})).tangent
    assert tangent is not None and tangent.abs().max() > 0


def test_mapping_over_decay_rates_works_in_debug_mode(monkeypatch):
    monkeypatch.setenv("RSMAMBA_KERNELS_DEBUG", "1")
    inputs = scan_inputs(1, 6, 3, 4)
    rates = torch.stack([inputs["A"], 2 * inputs["A"]])
    mapped = torch.func.vmap(lambda A: selective_scan(**inputs | {"A": A}))(rates)
    for y, A in zip(mapped, rates, strict=True):
        torch.testing.assert_close(y, selective_scan(**inputs | {"A": A}, backend="reference"))


def test_gradients_pass_gradcheck(operator):
    function, _ = operator
    small = {
        "selective_scan": {"b": 1, "length": 4, "d": 2, "n": 2},
        "multi": {"b": 1, "length": 4, "d": 2, "n": 2, "k": 4},
        "state_scan": {"b": 1, "h": 2, "w": 3, "d": 2},
        "state_fusion": {"b": 1, "h": 2, "w": 3, "d": 2},
        "convolve": {"b": 1, "length": 4, "d": 2},
        "gate": {"b": 1, "length": 3, "d": 2},
    }[function.__name__]
    make = next(m for f, m in OPERATORS.values() if f is function)
    inputs = {name: t.double().requires_grad_() for name, t in make(**small).items()}
    grid = {"grid": (2, 2)} if function.__name__ in ("multi", "convolve") else {}

    def call(*tensors):
        return function(**dict(zip(inputs, tensors, strict=True)), **grid)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


def test_two_runs_give_the_same_bits(operator):
    function, inputs = operator
    first, first_grads = run(function, inputs, None)
    second, second_grads = run(function, inputs, None)
    assert torch.equal(first, second)
    assert all(torch.equal(first_grads[name], second_grads[name]) for name in first_grads)


def test_autocast_changes_nothing_of_the_arithmetic(operator):
    function, inputs = operator
    wanted, wanted_grads = run(function, inputs, None, dtype=torch.float32)

    def under_autocast(**tensors):
        # As torch advises: the forward alone.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(**tensors)

    y, grads = run(under_autocast, inputs, None, dtype=torch.float32)
    assert torch.equal(y, wanted)
    assert all(torch.equal(grads[name], wanted_grads[name]) for name in grads)


@pytest.mark.parametrize("backend", ["reference", None])
def test_sixteen_bit_activations_with_float32_parameters(operator, backend):
    function, inputs = operator
    parameters = {"A", "D", "dt_bias", "k1", "k3", "k5", "alpha", "weight", "bias"}
    mixed = {n: t if n in parameters else t.bfloat16() for n, t in inputs.items()}
    exact, _ = run(function, {n: t.double() for n, t in mixed.items()}, "reference",
                   dtype=torch.float64)  # fmt: skip
    y = function(**mixed, backend=backend)
    assert y.dtype == torch.bfloat16
    assert (y - exact).norm() <= 5e-3 * exact.norm()


def test_meta_tensors_give_shapes(operator):
    function, inputs = operator
    y = function(**{name: t.to("meta") for name, t in inputs.items()})
    assert y.is_meta
    assert y.shape == function(**inputs).shape


def test_an_empty_batch_gives_an_empty_output(operator):
    function, inputs = operator
    weights = {"A", "D", "dt_bias", "k1", "k3", "k5", "alpha", "weight", "bias"}
    batch = 1 if function.__name__ == "multi" else 0
    empty = {
        name: t if name in weights else t.narrow(batch, 0, 0).contiguous()
        for name, t in inputs.items()
    }
    assert function(**empty).numel() == 0


@needs_library
def test_kernels_agree_with_the_reference_through_compile(operator):
    function, inputs = operator
    exact = function(**{name: t.double() for name, t in inputs.items()})
    torch.compiler.reset()
    compiled = torch.compile(lambda **k: function(**k), fullgraph=True, backend="eager")
    assert relative_error(compiled(**inputs), exact) <= 2e-6


def test_the_package_imports_without_triton_or_a_library():
    code = (
        "import sys, pathlib; sys.modules['triton'] = None\n"
        "import rsmamba_kernels.cpu as c; c.LIBRARY = pathlib.Path('/nowhere.so')\n"
        "import torch, rsmamba_kernels as k\n"
        "x = torch.rand(1, 3, 4)\n"
        "k.selective_scan(x, x, -torch.ones(4, 1), x[..., :1], x[..., :1])\n"
        "print({s.backend for s in k.status('cpu')})"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RSMAMBA_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "{'reference'}", done.stderr
