"""Triton's kernels behind the public operators: interpreted on the CPU, and on a GPU."""

import pytest
import torch

from rsmamba_kernels.triton_support import refuses
from tests.kernels import interpreter
from tests.kernels.triton_operator_cases import CASES, run_case


@pytest.mark.parametrize("name", CASES)
def test_interpreted(name):
    interpreter.call("tests.kernels.triton_operator_cases:run_case", name, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_the_gpu(name):
    if problem := refuses("cuda", (torch.float32,)):
        pytest.skip(problem)
    run_case(name, "cuda")
