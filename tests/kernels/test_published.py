"""mamba-ssm and causal-conv1d as backends: found by importing them, fed in their own layout."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from rsmamba_kernels import BackendError, dispatch, extension, selective_scan, status
from rsmamba_kernels.conv1d_silu.causal_conv1d import conv1d_silu_causal_conv1d
from rsmamba_kernels.conv1d_silu.reference import conv1d_silu_reference
from rsmamba_kernels.dispatch import Request
from rsmamba_kernels.selective_scan import mamba_ssm
from rsmamba_kernels.selective_scan.mamba_ssm import selective_scan_mamba_ssm
from rsmamba_kernels.selective_scan.reference import selective_scan_reference
from tests.kernels.cases import convolution_inputs, multi_inputs, randn, scan_inputs

PATH = ([0, 1, 2, 3], 4, 5, 10)
EXTENSIONS = ("selective_scan_cuda", "causal_conv1d_cuda")


@pytest.fixture(autouse=True)
def _forget():
    extension.problem.cache_clear()
    yield
    extension.problem.cache_clear()


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules of the published names and signatures that compute on the CPU."""

    def scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        # As the published kernel: (B, D, L), contiguous, one dtype, float32 parameters.
        assert all(t.is_contiguous() and t.dtype == u.dtype for t in (u, delta, B, C))
        assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
        delta = F.softplus(delta + delta_bias[:, None]) if delta_softplus else delta
        h, ys = torch.zeros(*u.shape[:2], A.shape[1]), []
        for t in range(u.shape[2]):
            h = (
                torch.exp(delta[:, :, t, None] * A) * h
                + (delta * u)[:, :, t, None] * B[:, None, :, t]
            )
            ys.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
        return torch.stack(ys, -1)

    def conv_fn(x, weight, bias=None, activation=None):
        assert x.is_contiguous() and activation == "silu"
        row = F.pad(x, (weight.shape[1] - 1, 0))
        return F.silu(F.conv1d(row, weight[:, None], bias, groups=x.shape[1]))

    scans = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    scans.selective_scan_fn = scan_fn
    convolutions = types.ModuleType("causal_conv1d")
    convolutions.causal_conv1d_fn = conv_fn
    for name in ("mamba_ssm", "mamba_ssm.ops", *EXTENSIONS):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, scans.__name__, scans)
    monkeypatch.setitem(sys.modules, "causal_conv1d", convolutions)


@pytest.mark.usefixtures("stand_ins")
class TestLayout:
    def agree(self, published, reference, inputs, options):
        leaves = [t.clone().requires_grad_() for t in inputs.values()]
        y, wanted = (f(*leaves, *options) for f in (published, reference))
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
        cotangent = randn(*y.shape)
        for got, expected in zip(
            torch.autograd.grad(y, leaves, cotangent),
            torch.autograd.grad(wanted, leaves, cotangent),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_every_direction_reaches_mamba_ssm_and_comes_back(self):
        inputs = multi_inputs(length=21, d=5, n=4)
        self.agree(selective_scan_mamba_ssm, selective_scan_reference, inputs, (True, *PATH))

    def test_every_direction_reaches_causal_conv1d_and_comes_back(self):
        inputs = convolution_inputs(length=21, d=5)
        self.agree(conv1d_silu_causal_conv1d, conv1d_silu_reference, inputs, PATH)

    def test_they_are_taken_on_request_only(self, monkeypatch):
        monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
        assert mamba_ssm.refuses(Request("cuda")) is None
        assert mamba_ssm.refuses(Request("cpu")) == "it runs on CUDA, not on cpu"
        assert mamba_ssm.refuses(Request("cuda", compiling=True)) == "it cannot be traced"
        assert {"mamba_ssm", "causal_conv1d"}.isdisjoint(s.backend for s in status("cpu"))


@pytest.mark.parametrize("error", [ImportError("undefined symbol: _ZN3c10"), OSError("libcudart")])
def test_a_package_without_a_working_extension_is_not_there(monkeypatch, error):
    """Installed, even imported, means nothing: the version says nothing about the extension."""

    def broken(name):
        raise error

    monkeypatch.setattr(extension.importlib, "import_module", broken)
    why = mamba_ssm.refuses(Request("cuda"))
    assert f"`import selective_scan_cuda` fails ({type(error).__name__}: {error})" == why


def test_asking_for_it_on_the_cpu_names_the_reason():
    with pytest.raises(BackendError, match="it runs on CUDA, not on cpu"):
        selective_scan(**scan_inputs(), backend="mamba_ssm")
