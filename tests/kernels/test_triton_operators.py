"""Triton's kernels behind the public operators: interpreted on the CPU, and on a GPU."""

import pytest
import torch

from rsmamba_kernels.triton_support import refuses
from tests.kernels import interpreter
from tests.kernels.triton_operator_cases import CASES, LARGE_CASES, SLOW, run_case


def test_slow_cases_exist():
    assert SLOW <= CASES.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_interpreted(name):
    interpreter.call("tests.kernels.triton_operator_cases:run_case", name, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, *LARGE_CASES])
def test_on_the_gpu(name):
    if problem := refuses("cuda", (torch.float32,)):
        pytest.skip(problem)
    run_case(name, "cuda")
