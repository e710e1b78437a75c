"""Wrong arguments: each error names the argument, what it is and what was expected."""

import numpy as np
import pytest
import torch

from rsmamba_kernels import BackendError
from tests.kernels.cases import OPERATORS


@pytest.fixture(params=OPERATORS)
def operator(request):
    function, make = OPERATORS[request.param]
    return function, make()


def test_every_wrong_shape_is_named(operator):
    function, inputs = operator
    for name, tensor in inputs.items():
        # Any number of taps will do.
        wider = [tensor.unsqueeze(0)] + ([] if name == "weight" else [tensor[..., :-1]])
        for wrong in (t for t in wider if t.numel()):
            # Seen from a wrong first tensor, or rates, another one does not fit.
            said = name if name not in ("u", "x", "y", "h", "A") else r"\w+"
            with pytest.raises(
                ValueError, match=rf"{said} has shape \(.*expected|tokens on a grid"
            ):
                function(**inputs | {name: wrong.contiguous()})


def test_a_missing_tensor_is_named_unless_it_is_optional(operator):
    function, inputs = operator
    for name in inputs:
        if name in ("dt_bias", "bias") or (name == "D" and "A" in inputs):
            assert function(**inputs | {name: None}).isfinite().all()
        else:
            with pytest.raises(TypeError, match=rf"{name} must be a .*tensor, not NoneType"):
                function(**inputs | {name: None})


def test_tensors_for_storage_and_sparse_ones_are_refused(operator):
    function, inputs = operator
    for name, tensor in inputs.items():
        with pytest.raises(
            TypeError, match=rf"{name} must be a floating-point tensor, not .*float8"
        ):
            function(**inputs | {name: tensor.to(torch.float8_e4m3fn)})
        with pytest.raises(TypeError, match=rf"{name} must be a dense tensor"):
            function(**inputs | {name: tensor.to_sparse()})


def test_integer_tensors_and_arrays_are_refused(operator):
    function, inputs = operator
    for name, tensor in inputs.items():
        with pytest.raises(TypeError, match=rf"{name} must be a floating-point tensor"):
            function(**inputs | {name: tensor.long()})
        with pytest.raises(TypeError, match=rf"{name} must be a .*tensor, not ndarray"):
            function(**inputs | {name: tensor.numpy()})


def test_mixed_devices_are_refused(operator):
    function, inputs = operator
    for name in list(inputs)[1:]:
        with pytest.raises(ValueError, match=rf"{name} is on meta and .* on cpu"):
            function(**inputs | {name: inputs[name].to("meta")})


def test_activations_must_be_contiguous_in_the_last_dimension(operator):
    function, inputs = operator
    parameters = {"A", "D", "dt_bias", "k1", "k3", "k5", "alpha", "weight", "bias"}
    for name, tensor in inputs.items():
        across = tensor.transpose(-1, -2).contiguous().transpose(-1, -2) if tensor.ndim > 1 else 0
        if name in parameters or tensor.shape[-1] == 1:
            continue
        with pytest.raises(ValueError, match=rf"last dimension of {name}.*{name}\.contiguous\(\)"):
            function(**inputs | {name: across})


def test_strided_parameters_are_welcome(operator):
    function, inputs = operator
    wanted = function(**inputs)
    for name in {"A", "D", "dt_bias", "k1", "alpha", "weight", "bias"} & set(inputs):
        strided = torch.stack([inputs[name]] * 2, dim=-1)[..., 0]
        assert not strided.is_contiguous()
        assert torch.equal(function(**inputs | {name: strided}), wanted)


def test_an_unknown_backend_is_refused_with_the_known_ones(operator):
    function, inputs = operator
    with pytest.raises(BackendError, match=r"choose one of auto, .*reference"):
        function(**inputs, backend="cudnn")
    with pytest.raises(ValueError, match="cudnn"):
        function(**inputs, backend="cudnn")


@pytest.mark.parametrize("name", ["selective_scan", "selective_scan_multi", "state_scan"])
def test_debug_mode_refuses_growing_states(name, monkeypatch):
    function, make = OPERATORS[name]
    inputs = make()
    inputs["A"].view(-1)[3] = 0.5
    function(**inputs)
    monkeypatch.setenv("RSMAMBA_KERNELS_DEBUG", "0")
    function(**inputs)
    monkeypatch.setenv("RSMAMBA_KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=r"A .* must be negative .* largest value is 0\.5"):
        function(**inputs)
    inputs["A"].view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=r"A .* must be negative"):
        function(**inputs)


@pytest.mark.parametrize("name", ["selective_scan_multi", "conv1d_silu"])
def test_paths_that_do_not_fit_are_refused(name):
    function, make = OPERATORS[name]
    with pytest.raises(ValueError, match="20 tokens on a grid of 3 x 5"):
        function(**make(), grid=(3, 5))
    with pytest.raises(ValueError, match="expected 21"):
        function(**make(), cls="middle")
    with pytest.raises(ValueError, match="order=7"):
        function(**make(), orders=(0, 1, 2, 7))
    with pytest.raises(ValueError, match="cls='last'"):
        function(**make(), cls="last")
    with pytest.raises(ValueError, match="orders is empty"):
        function(**make(), orders=())
    with pytest.raises(ValueError, match=r"has 4 directions .*orders has 2"):
        function(**make(), orders=(0, 1))


@pytest.mark.parametrize("name", ["selective_scan_multi", "conv1d_silu"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("grid", value) for value in (20, (4, 5, 1), "45", (4.0, 5.0), (True, 20), None)),
        *(("orders", value) for value in (0, (0, 1, 2, 3.0), "0123", (0, 1, 2, None))),
    ],
)
def test_what_is_no_path_is_named_with_its_operator(name, option, value):
    function, make = OPERATORS[name]
    with pytest.raises((TypeError, ValueError), match=rf"{name}: (grid|orders?)"):
        function(**make(), **{option: value})


def test_a_grid_below_nothing_is_refused():
    """The product of two negative sides fits, and kernels would write outside the sequence."""
    function, make = OPERATORS["selective_scan"]
    with pytest.raises(ValueError, match=r"selective_scan: grid=\(-4, -5\) has a negative side"):
        function(**make(), order=2, grid=(-4, -5))


def test_numbers_of_numpy_are_integers_too():
    function, make = OPERATORS["conv1d_silu"]
    wanted = function(**make())
    orders = tuple(np.arange(4))
    assert torch.equal(function(**make(), orders=orders, grid=np.array([4, 5])), wanted)


def test_a_convolution_without_taps_and_an_image_without_rows_are_refused():
    function, make = OPERATORS["conv1d_silu"]
    inputs = make()
    with pytest.raises(ValueError, match="no taps"):
        function(**inputs | {"weight": inputs["weight"][..., :0]})
    function, make = OPERATORS["state_fusion"]
    inputs = make()
    for name in ("h", "x", "C"):
        inputs[name] = inputs[name][:, :0]
    with pytest.raises(ValueError, match="needs rows and columns"):
        function(**inputs)


def test_an_unknown_padding_is_refused():
    function, make = OPERATORS["state_fusion"]
    with pytest.raises(ValueError, match="padding='same'"):
        function(**make(), padding="same")
