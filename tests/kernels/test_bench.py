"""The benchmark: it runs every operator, compares with what it is given, and keeps its file."""

import json
from pathlib import Path

import pytest
import torch

from rsmamba_kernels import bench, bench_cases, cpu, dispatch
from tests.kernels.cases import relative_error

LOOPS = '''
"""A form in PyTorch."""
from rsmamba_kernels import gate as ours


def gate(y, z):
    return ours(y, z, backend="reference")
'''


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "loops.py").write_text(LOOPS)
    for _ in range(2):
        bench.main(
            ["--device=cpu", "--quick", "--repeats=2", f"--markdown={folder / 'table.md'}",
             f"--json={folder / 'figures.json'}", f"--baselines={folder / 'loops.py'}"]
        )  # fmt: skip
    return json.loads((folder / "figures.json").read_text()), (folder / "table.md").read_text()


def test_every_operator_and_backend_is_timed_both_ways(report):
    figures, _ = report
    assert {r["operator"] for r in figures["results"]} == set(dispatch.operators())
    forms = {(r["operator"], r["form"]) for r in figures["results"]}
    expected = {"reference", "cpu"} if cpu.supported_isas() else {"reference"}
    for operator in set(dispatch.operators()) - {"gate"}:
        assert {form for name, form in forms if name == operator} == expected
    for r in figures["results"]:
        assert 0 < r["forward_min"] <= r["forward_median"]
        assert 0 < r["both_min"] <= r["both_median"]


def test_the_peak_of_a_call_counts_what_lives_at_the_same_time():
    def call():
        a = torch.empty(1000, 250)
        b = torch.empty(500, 250)
        del b
        return torch.empty(250, 250), a + 1

    assert bench.Clock("cpu").peak(call) == pytest.approx(2.25e6, rel=1e-3)


def test_ratios_compare_with_the_given_form_or_the_reference(report):
    figures, _ = report
    first = {}
    for r in figures["results"]:
        base = first.setdefault((r["operator"], r["shape"]), r)
        assert r["ratio"] == pytest.approx(base["forward_median"] / r["forward_median"])
        assert r["ratio_both"] == pytest.approx(base["both_median"] / r["both_median"])
    assert {r["form"] for r in first.values()} == {"reference", "torch"}


def test_a_second_run_replaces_the_section_of_its_machine(report):
    figures, text = report
    assert text.startswith("# Benchmarks of the operators\n")
    assert text.count("\n## ") == 1
    assert f"## {figures['machine']}" in text
    assert text.count("| state_scan |") == text.count("| state_fusion |")


def test_other_machines_sections_stay(tmp_path):
    path = tmp_path / "table.md"
    for title, text in (("one (A+)", "1"), ("two", "2"), ("one (A+)", "3")):
        bench.write_section(path, title, text)
    assert path.read_text() == (
        "# Benchmarks of the operators\n\n## one (A+)\n\n3\n\n## two\n\n2\n"
    )


@pytest.mark.parametrize("name", ["selective_scan", "state_fusion"])
def test_the_forms_to_beat_compute_the_operators_and_their_gradients(name):
    forms = bench.baselines(Path(__file__).parents[1] / "benchmarks" / "torch_loops.py")
    like = torch.empty(0)
    case = {
        "selective_scan": lambda: bench_cases.scan_case(like, 1, 2, 26, 20, 4),
        "state_fusion": lambda: bench_cases.fusion_case(like, 2, 9, 20),
    }[name]()
    exact = [t.detach().double().requires_grad_() for t in case.tensors]
    wanted = case.call(*exact, backend="reference")
    cotangent = torch.randn_like(wanted)
    got = forms[name](*case.tensors)
    assert relative_error(got, wanted) <= 2e-6
    gradients = torch.autograd.grad(got, case.tensors, cotangent.float())
    expected = torch.autograd.grad(wanted, exact, cotangent)
    for a, b in zip(gradients, expected, strict=True):
        assert relative_error(a, b) <= 5e-6
    with torch.no_grad():
        assert relative_error(forms[name](*case.tensors), wanted) <= 2e-6
