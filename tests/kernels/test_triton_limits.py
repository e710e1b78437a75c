"""What the Triton kernels cannot take goes to the next backend, or is refused by name."""

import importlib
import os
from unittest import mock

import pytest
import torch

from rsmamba_kernels import dispatch, gate, selective_scan_multi, status
from rsmamba_kernels.dispatch import BackendError, Request, resolve
from rsmamba_kernels.triton_support import as_images, join_images, split_images
from tests.kernels import interpreter
from tests.kernels.cases import multi_inputs

#: Operator, shapes of its first tensors just within a limit and just beyond it, what is said then.
LIMITS = [
    ("selective_scan", [(15, 1, 8, 4)], [(16, 1, 8, 4)], "15 directions at most, not 16"),
    ("selective_scan", [(1, 1, 2**20, 1023)], [(1, 1, 2**20, 1024)], "in 32 bits"),
    ("selective_scan", [(1, 1, 2**26 - 1, 1)], [(1, 1, 2**26, 1)], "in 32 bits"),
    ("state_scan", [(9, 2**10, 2**10, 2047)], [(9, 2**10, 2**10, 2048)], "in 32 bits"),
    ("state_scan", [(9, 1, 1, 4194240)], [(9, 1, 1, 4194241)], "4194240 channels at most"),
    ("state_fusion", [(9, 2**10, 2**10, 2047)], [(9, 2**10, 2**10, 2048)], "in 32 bits"),
    ("state_fusion", [(9, 2, 1048560, 3)], [(9, 2, 1048561, 3)], "1048560 columns at most"),
    ("conv1d_silu", [(9, 2**21, 1023)], [(9, 2**21, 1024)], "in 32 bits"),
    ("conv1d_silu", [(9, 4194236, 3)], [(9, 4194237, 3)], "4194240 tokens at most"),
    ("gate", [(1, 1, 16776960)], [(1, 1, 16776961)], "16776960 channels at most"),
    ("gate", [(1, 1, 4194240)], [(1, 1, 4194368)], "4194240 channels at most"),
    ("gate", [(2**15, 2**15, 1)], [(2**15, 2**16, 1)], "counts rows in 32 bits"),
]
#: The shapes that follow, where limits depend on them.
OTHERS = {"selective_scan": [(), (1, 4, 16)], "conv1d_silu": [(1, 3, 4)]}


@pytest.mark.parametrize(("operator", "within", "beyond", "words"), LIMITS)
def test_limits_are_known_by_their_shapes(operator, within, beyond, words):
    refuses = importlib.import_module(f"rsmamba_kernels.{operator}.triton").refuses
    others = OTHERS.get(operator, [])
    assert refuses([*within, *others]) is None
    assert words in refuses([*beyond, *others])


def check_choice():
    """Without the C++ kernels: as on a GPU."""
    few, many = (((k, 1, 8, 4), (k, 1, 8, 4), (k, 4, 1)) for k in (15, 16))
    entry = dispatch.entry("selective_scan")
    with mock.patch.dict(entry.backends), mock.patch.dict(os.environ):
        entry.backends.pop("cpu")
        os.environ.pop(dispatch.ENVIRONMENT, None)
        assert resolve("selective_scan", Request("cpu", size=1, shapes=few)).name == "triton"
        assert resolve("selective_scan", Request("cpu", size=1, shapes=many)).name == "reference"
        assert resolve("selective_scan", Request("cpu", size=1)).name == "triton"


def check_call():
    """16 directions, as an order and as a wish."""
    inputs = multi_inputs(1, 3, 2, 1, 16)
    options = {"orders": [0] * 16}
    with pytest.raises(BackendError, match=r"selective_scan .*\(it takes 15 directions at most"):
        selective_scan_multi(**inputs, **options, backend="triton")
    with mock.patch.dict(os.environ, {dispatch.ENVIRONMENT: "triton"}):
        y = selective_scan_multi(**inputs, **options)
    wanted = selective_scan_multi(**inputs, **options, backend="reference")
    torch.testing.assert_close(y, wanted)


def check_meta():
    """The interpreter has nothing to read on the meta device."""
    assert {row.backend for row in status("meta")} == {"reference"}
    y = torch.empty(1, 2, 3, device="meta")
    assert gate(y, y, backend="auto").shape == y.shape
    with pytest.raises(BackendError, match="interpreter computes on the CPU, not on meta"):
        gate(y, y, backend="triton")


@pytest.mark.parametrize("check", ["check_choice", "check_call", "check_meta"])
def test_interpreted(check):
    interpreter.call(f"tests.kernels.test_triton_limits:{check}")


def test_rows_too_far_apart_are_copied():
    far = torch.empty_strided((2, 3, 4), (1, 2**30, 1), device="meta")
    near = torch.empty_strided((2, 3, 4), (1, 2**29, 1), device="meta")
    assert as_images(far).stride() == (12, 4, 1)
    assert as_images(near).stride() == near.stride()
    with pytest.raises(ValueError, match="in 32 bits"):
        as_images(torch.empty(1, 2**16, 2**15, device="meta"))


def test_images_are_split_and_joined():
    x, weight = torch.arange(10).view(5, 2), torch.ones(2)
    few = list(split_images((x, None, weight, "option"), (0, None), 2))
    assert [part[0].tolist() for part in few] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]
    assert all(part[1] is None and part[2] is weight and part[3] == "option" for part in few)
    whole, total = join_images([(part[0], part[0].sum(0)) for part in few], (0, None))
    assert torch.equal(whole, x)
    assert torch.equal(total, x.sum(0))
