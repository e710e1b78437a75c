"""The selective scan's Triton kernels: interpreted on the CPU, and the same cases on a GPU."""

import pytest
import torch

from rsmamba_kernels.triton_support import refuses
from tests.kernels import interpreter
from tests.kernels.triton_scan_cases import CASES, LARGE_CASES, run


@pytest.mark.parametrize("name", CASES)
def test_interpreted(name):
    interpreter.call("tests.kernels.triton_scan_cases:run", name, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, *LARGE_CASES])
def test_on_the_gpu(name):
    if problem := refuses("cuda", (torch.float32,)):
        pytest.skip(problem)
    run(name, "cuda")
