"""The C++ kernels against the float64 reference, with every instruction set of this machine."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from rsmamba_kernels import BackendError, cpu, selective_scan, state_fusion, state_scan, status
from tests.kernels.cases import (
    OPERATORS,
    fusion_inputs,
    needs_library,
    randn,
    relative_error,
    run,
    scan_inputs,
    state_inputs,
)

#: Largest error relative to the largest magnitude of the tensor.
OUTPUT, GRADIENT = 2e-6, 5e-6


@pytest.fixture(params=cpu.ISAS)
def isa(request, monkeypatch):
    if request.param not in cpu.supported_isas():
        pytest.skip(f"{request.param} is not there")
    monkeypatch.setenv(cpu.ISA_ENVIRONMENT, request.param)
    return request.param


@pytest.fixture
def threads(monkeypatch):
    """Two threads, even for the little work of a test."""
    monkeypatch.setattr(cpu, "_SMALL", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


#: Those that the library has.
KERNELS = [
    pytest.param(*OPERATORS[name], id=name)
    for name in (
        "selective_scan",
        "selective_scan_multi",
        "state_scan",
        "state_fusion",
        "conv1d_silu",
    )
]


def assert_matches_reference(operator, inputs, **options):
    y, grads = run(operator, inputs, "cpu", **options)
    wanted, wanted_grads = run(operator, inputs, "reference", dtype=torch.float64, **options)
    assert y.dtype == torch.float32
    assert relative_error(y, wanted) <= OUTPUT
    for name, grad in grads.items():
        if wanted_grads[name] is None:
            assert grad is None, name
        else:
            assert grad.shape == inputs[name].shape, name
            assert relative_error(grad, wanted_grads[name]) <= GRADIENT, name


@needs_library
class TestSelectiveScan:
    @pytest.mark.parametrize("grid", [(5, 9), (7, 7), (1, 12), (4, 3)])
    @pytest.mark.parametrize("cls", ["none", "middle", "first"])
    @pytest.mark.parametrize("order", [0, 1, 2, 3])
    def test_every_order_and_class_token(self, isa, order, cls, grid):
        length = grid[0] * grid[1] + (cls != "none")
        inputs = scan_inputs(b=1, length=length, d=19, n=4)
        assert_matches_reference(selective_scan, inputs, order=order, grid=grid, cls=cls)

    @pytest.mark.parametrize("n", [1, 4, 8, 16])
    @pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 49, 50, 144, 145, 197])
    def test_every_length_and_number_of_states(self, isa, length, n):
        assert_matches_reference(selective_scan, scan_inputs(1, length, 17, n))

    @pytest.mark.parametrize("length", [1025, 4096])
    def test_long_sequences(self, isa, length):
        assert_matches_reference(selective_scan, scan_inputs(1, length, 17, 16))

    @pytest.mark.parametrize("d", [1, 8, 16, 64, 65, 130])
    def test_widths_that_fill_no_whole_vector_or_group(self, isa, d):
        assert_matches_reference(selective_scan, scan_inputs(3, 9, d, 8))

    @pytest.mark.parametrize("missing", [("D",), ("dt_bias",), ("D", "dt_bias")])
    def test_without_skip_or_bias(self, isa, missing):
        inputs = {name: t for name, t in scan_inputs().items() if name not in missing}
        assert_matches_reference(selective_scan, inputs)

    def test_without_softplus(self, isa):
        inputs = scan_inputs(n=4)
        inputs["dt"] = inputs["dt"].abs()
        inputs["dt_bias"] = inputs["dt_bias"].abs()
        assert_matches_reference(selective_scan, inputs, softplus=False)

    @pytest.mark.parametrize("only", [{"u"}, {"A", "C"}, {"dt_bias"}, {"dt", "B", "D"}])
    def test_gradients_of_a_subset(self, only):
        assert_matches_reference(selective_scan, scan_inputs(), only=only)

    @pytest.mark.parametrize("rate", [-1e-4, -64.0])
    @pytest.mark.parametrize("raw", [-30.0, 30.0])
    def test_extreme_steps_and_decays(self, isa, raw, rate):
        inputs = scan_inputs(length=40)
        inputs["dt"] = raw + 0.1 * inputs["dt"]
        inputs["A"] = rate * (1 + 0.1 * randn(*inputs["A"].shape).abs())
        y, grads = run(selective_scan, inputs, "cpu")
        wanted, wanted_grads = run(selective_scan, inputs, "reference", dtype=torch.float64)
        assert relative_error(y, wanted) <= OUTPUT
        for name, grad in grads.items():
            # Where whole states decay at once, their gradients are sums of what is left.
            assert relative_error(grad, wanted_grads[name]) <= 2 * GRADIENT, name

    def test_a_nan_spoils_its_channel_from_its_step_on_and_nothing_else(self, isa):
        inputs = scan_inputs(b=1)
        inputs["u"][0, 7, 3] = torch.nan
        y = selective_scan(**inputs, backend="cpu")
        assert y[0, 7:, 3].isnan().all()
        assert y.isnan().sum() == y.shape[1] - 7

    def test_other_numbers_of_states_and_float64_parameters_are_the_references(self, monkeypatch):
        monkeypatch.setenv("RSMAMBA_KERNELS", "cpu")
        for inputs, why in (
            (scan_inputs(n=3), "1, 4, 8, 16 states, not for 3"),
            (scan_inputs() | {"A": -torch.ones(21, 16).double()}, "float32, not in torch.float64"),
        ):
            assert torch.equal(
                selective_scan(**inputs), selective_scan(**inputs, backend="reference")
            )
            with pytest.raises(BackendError, match=why):
                selective_scan(**inputs, backend="cpu")

    @pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "dt_bias"])
    def test_a_wrong_shape_is_named_before_it_reaches_the_kernel(self, name):
        inputs = scan_inputs()
        inputs[name] = inputs[name][1:]
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            selective_scan(**inputs, backend="cpu")

    def test_wrong_orders_and_grids_are_refused(self):
        for options in ({"order": 4}, {"order": 2}, {"grid": (3, 3)}):
            with pytest.raises(ValueError, match=r"order|tokens"):
                selective_scan(**scan_inputs(), **options, backend="cpu")


@needs_library
class TestSpatialOperators:
    @pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7), (9, 4), (1, 33)])
    def test_state_scan_on_any_grid(self, isa, grid):
        assert_matches_reference(state_scan, state_inputs(2, *grid, d=70))

    @pytest.mark.parametrize("options", [{"dt_bias": None}, {"softplus": False}])
    def test_state_scan_without_bias_or_softplus(self, isa, options):
        inputs = state_inputs() | {"dt": randn(2, 5, 7, 21).abs()}
        inputs.pop("dt_bias")
        assert_matches_reference(state_scan, inputs, **options)

    @pytest.mark.parametrize("raw", [-30.0, 30.0])
    def test_state_scan_with_extreme_steps(self, isa, raw):
        inputs = state_inputs()
        inputs["dt"] = raw + 0.1 * inputs["dt"]
        inputs["A"] = -1e-3 * torch.ones(21) if raw > 0 else -64 * torch.ones(21)
        assert_matches_reference(state_scan, inputs)

    # Smaller than the margin of five pixels, and wider than a tile of the kernel (64).
    @pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7), (5, 13), (3, 130), (66, 5)])
    @pytest.mark.parametrize("padding", ["replicate", "zeros"])
    def test_state_fusion_on_any_grid(self, isa, grid, padding):
        assert_matches_reference(state_fusion, fusion_inputs(2, *grid, d=19), padding=padding)

    @pytest.mark.parametrize("d", [1, 16, 32, 33, 100])
    def test_state_fusion_of_any_width(self, isa, d):
        assert_matches_reference(state_fusion, fusion_inputs(1, 6, 6, d))

    def test_the_paddings_differ(self):
        inputs = fusion_inputs()
        replicate = state_fusion(**inputs, backend="cpu")
        assert not torch.allclose(replicate, state_fusion(**inputs, padding="zeros", backend="cpu"))


def strided(name, tensor):
    """The same values as a slice of something wider, or with the batch inside."""
    if tensor.ndim < 2 or name in ("A", "k1", "k3", "k5"):
        return torch.stack([tensor, tensor], dim=-1)[..., 0]
    if name in ("B", "C", "u", "x"):
        width = tensor.shape[-1]
        return torch.cat([randn(*tensor.shape), tensor, tensor], -1)[..., width : 2 * width]
    return (
        torch.cat([tensor, tensor], 0).transpose(0, 1).contiguous().transpose(0, 1)[: len(tensor)]
    )


@needs_library
@pytest.mark.parametrize(("operator", "make"), KERNELS)
class TestEveryOperator:
    def test_strided_inputs_and_gradients(self, operator, make):
        inputs = {name: t.requires_grad_() for name, t in make().items()}
        views = {name: strided(name, t) for name, t in inputs.items()}
        assert not any(v.is_contiguous() for v in views.values() if v.numel() > 1)
        y = operator(**views, backend="cpu")
        plain = operator(**inputs, backend="cpu")
        assert torch.equal(y, plain)
        # The gradient of a sum is one number, expanded.
        got = torch.autograd.grad(y.sum(), list(inputs.values()))
        wanted = torch.autograd.grad(plain, list(inputs.values()), torch.ones(y.shape))
        for name, a, b in zip(inputs, got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)

    def test_threads_do_not_change_a_bit(self, operator, make, threads):
        inputs = make(b=3, d=130)
        y, grads = run(operator, inputs, "cpu")
        torch.set_num_threads(1)
        single, single_grads = run(operator, inputs, "cpu")
        assert torch.equal(y, single)
        assert all(torch.equal(grads[name], single_grads[name]) for name in grads)

    def test_every_buffer_is_filled(self, operator, make):
        """Uninitialised memory is NaN in this mode: nothing of it may be read."""
        inputs = make()
        y, grads = run(operator, inputs, "cpu")
        torch.use_deterministic_algorithms(True)
        try:
            poisoned, poisoned_grads = run(operator, inputs, "cpu")
        finally:
            torch.use_deterministic_algorithms(False)
        assert torch.equal(y, poisoned)
        assert all(torch.equal(grads[name], poisoned_grads[name]) for name in grads)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_sixteen_bit_inputs_are_computed_in_float32(self, operator, make, dtype):
        inputs = {name: t.to(dtype).float() for name, t in make().items()}
        y, grads = run(operator, inputs, "cpu", dtype=dtype)
        wanted, wanted_grads = run(operator, inputs, "reference", dtype=torch.float64)
        assert y.dtype == dtype
        assert (y - wanted).norm() <= 5e-3 * wanted.norm()
        for name, grad in grads.items():
            assert grad.dtype == dtype
            assert (grad - wanted_grads[name]).norm() <= 1e-2 * wanted_grads[name].norm(), name

    def test_nothing_but_inputs_and_output_is_kept_for_the_backward(self, operator, make):
        inputs = {name: t.requires_grad_() for name, t in make().items()}
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t
        ):
            y = operator(**inputs, backend="cpu")
        budget = sum(t.numel() for t in inputs.values()) + y.numel()
        # Room for small parameters in another arrangement.
        assert sum(t.numel() for t in kept.values()) <= 1.3 * budget

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing_gives_the_same_gradients(self, operator, make, reentrant):
        def call(*tensors):
            return operator(**dict(zip(inputs, tensors, strict=True)), backend="cpu")

        inputs = {name: t.requires_grad_() for name, t in make().items()}
        y = checkpoint(call, *inputs.values(), use_reentrant=reentrant)
        y.sum().backward()
        wanted = torch.autograd.grad(call(*inputs.values()).sum(), list(inputs.values()))
        assert all(torch.equal(t.grad, g) for t, g in zip(inputs.values(), wanted, strict=True))

    def test_a_second_derivative_is_refused(self, operator, make):
        inputs = {name: t.requires_grad_() for name, t in make().items()}
        y = operator(**inputs, backend="cpu")
        first = next(iter(inputs.values()))
        (grad,) = torch.autograd.grad(y.square().sum(), first, create_graph=True)
        with pytest.raises(RuntimeError, match="autograd formula"):
            grad.sum().backward()

    def test_calls_from_many_threads_at_once(self, operator, make, threads):
        inputs = make()
        wanted = operator(**inputs, backend="cpu")
        with ThreadPoolExecutor(4) as pool:
            results = pool.map(lambda _: operator(**inputs, backend="cpu"), range(40))
            assert all(torch.equal(y, wanted) for y in results)

    def test_float64_and_transformed_tensors_go_to_the_reference(self, operator, make):
        inputs = make()
        double = {name: t.double() for name, t in inputs.items()}
        wanted = operator(**double, backend="reference")
        assert torch.equal(operator(**double), wanted)
        first = next(iter(inputs))
        mapped = torch.func.vmap(lambda t: operator(**inputs | {first: t}))(
            torch.stack([inputs[first], 2 * inputs[first]])
        )
        for got, factor in zip(mapped, (1, 2), strict=True):
            expected = operator(**double | {first: factor * double[first]})
            assert relative_error(got, expected) <= OUTPUT
        with pytest.raises(BackendError, match=r"float32, not in torch\.float64"):
            operator(**{name: t.double() for name, t in inputs.items()}, backend="cpu")


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_with_threads_of_its_own(threads):
    inputs = scan_inputs(d=130)
    wanted = selective_scan(**inputs, backend="cpu")
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # without threads of its own it would wait for ever
        os._exit(0 if torch.equal(selective_scan(**inputs, backend="cpu"), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class TestLibrary:
    """What happens without a usable library."""

    @pytest.fixture(autouse=True)
    def _auto(self, monkeypatch):
        monkeypatch.delenv("RSMAMBA_KERNELS", raising=False)

    def assert_falls_back(self, reason):
        inputs = scan_inputs()
        y = selective_scan(**inputs)
        assert torch.equal(y, selective_scan(**inputs, backend="reference"))
        with pytest.raises(BackendError, match=reason):
            selective_scan(**inputs, backend="cpu")
        for operator in status("cpu"):
            assert operator.backend != "cpu"
            assert reason in dict(operator.others).get("cpu", reason)

    def test_a_missing_one_falls_back_and_is_reported_once(self, monkeypatch, tmp_path, caplog):
        monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "missing.so")
        self.assert_falls_back("was not built")
        assert [r.getMessage() for r in caplog.records if "missing.so" in r.getMessage()] == [
            "The fast CPU operators are off: missing.so was not built: "
            "install a C++ compiler (g++ or clang++) and rsmamba again"
        ]

    def test_a_broken_one_falls_back(self, monkeypatch, tmp_path):
        broken = tmp_path / "broken.so"
        broken.write_text("no library")
        monkeypatch.setattr(cpu, "LIBRARY", broken)
        self.assert_falls_back("cannot be loaded")

    @needs_library
    def test_one_of_another_version_falls_back(self, monkeypatch, tmp_path):
        other = Path(shutil.copy(cpu.LIBRARY, tmp_path))
        monkeypatch.setattr(cpu, "LIBRARY", other)
        monkeypatch.setattr(cpu, "_ABI_VERSION", -1)
        self.assert_falls_back("another version")

    @needs_library
    def test_an_unknown_instruction_set_falls_back(self, monkeypatch):
        monkeypatch.setenv(cpu.ISA_ENVIRONMENT, "sse9")
        self.assert_falls_back("choose one of baseline")

    @needs_library
    def test_the_library_is_preferred(self):
        backends = {s.operator: s.backend for s in status("cpu")}
        assert {backends[name] for name in ("selective_scan", "state_scan", "state_fusion")} == {
            "cpu"
        }
