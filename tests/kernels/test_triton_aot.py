"""The Triton kernels compiled for sm_80 and sm_90: nothing spills, nothing grew."""

import json

import pytest

from tests.kernels import interpreter
from tests.kernels.triton_aot_cases import ARCHITECTURES, CASES, DTYPES, RECORD, problem

#: Instructions may grow by this much: another version of Triton arranges them differently.
GROWTH = 1.1


def parameters():
    """One case of each kind is quick enough for every run."""
    for case in CASES:
        for dtype in DTYPES:
            for arch in ARCHITECTURES:
                quick = (dtype, arch) == ("bf16", 90) and case in ("gate", "state scan")
                yield pytest.param(case, dtype, arch, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("case", "dtype", "arch"), parameters())
def test_kernels_neither_spill_nor_grow(case, dtype, arch):
    if reason := problem():
        pytest.skip(reason)
    recorded = json.loads(RECORD.read_text())[f"{case}, {dtype}, sm_{arch}"]
    figures = interpreter.call(
        "tests.kernels.triton_aot_cases:compiled", case, dtype, arch, interpret=False
    )
    assert figures.keys() == recorded.keys()
    for kernel, now in figures.items():
        then = recorded[kernel]
        assert now["spills"] == 0 and now["stack"] == 0, f"{kernel}: {now}"
        assert now["registers"] <= then["registers"], f"{kernel}: {now}, was {then}"
        assert now["instructions"] <= GROWTH * then["instructions"], f"{kernel}: {now}, was {then}"
