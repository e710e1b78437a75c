"""The benchmark: it runs every operator, compares with what it is given, and keeps its file."""

import json
import os
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
             f"--json={folder / 'figures.json'}", f"--baselines={folder / 'loops.py'}",
             "--threads=1", "--isa"]
        )  # fmt: skip
    ((machine, figures),) = json.loads((folder / "figures.json").read_text()).items()
    return figures | {"machine": machine}, (folder / "table.md").read_text()


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
    path, figures = tmp_path / "table.md", tmp_path / "figures.json"
    for title, text in (("one (A+)", "1"), ("two", "2"), ("one (A+)", "3")):
        bench.write_section(path, title, text)
        bench.write_figures(figures, title, {"results": [text]})
    assert path.read_text() == (
        "# Benchmarks of the operators\n\n## one (A+)\n\n3\n\n## two\n\n2\n"
    )
    assert json.loads(figures.read_text()) == {
        "one (A+)": {"results": ["3"]},
        "two": {"results": ["2"]},
    }


def test_the_published_figures_are_those_of_the_table():
    folder = Path(bench.__file__).parents[1]
    text = (folder / "BENCHMARKS.md").read_text()
    sections = json.loads((folder / "benchmarks.json").read_text())
    assert sections
    for machine, figures in sections.items():
        results = [bench.Result(**r) for r in figures["results"]]
        assert f"## {machine}\n" in text
        assert bench.table(results) in text


def test_one_and_two_threads_and_every_instruction_set_are_compared_by_default(monkeypatch):
    monkeypatch.setattr(cpu, "supported_isas", lambda: ("baseline", "avx2"))
    for cores, threads in ((8, [1, 2]), (1, [1]), (None, [1])):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        arguments = bench._arguments(["--device=cpu"])
        assert (arguments.threads, arguments.isa) == (threads, ["avx2", "baseline"])
    arguments = bench._arguments(["--device=cuda"])
    assert (arguments.threads, arguments.isa) == ([1], [])
    asked = bench._arguments(["--device=cpu", "--threads", "3", "--isa", "avx512", "avx2"])
    assert (asked.threads, asked.isa) == ([3], ["avx2"])
    with pytest.raises(SystemExit):
        bench._arguments(["--isa", "sse9"])


@pytest.mark.skipif(not cpu.supported_isas(), reason="the C++ library is not built")
def test_every_instruction_set_has_a_row_and_the_settings_are_put_back(monkeypatch, tmp_path):
    monkeypatch.setenv(cpu.ISA_ENVIRONMENT, cpu.supported_isas()[-1])
    monkeypatch.delattr(os, "getloadavg", raising=False)  # as on Windows
    before, figures = torch.get_num_threads(), tmp_path / "figures.json"
    bench.main(
        ["--device=cpu", "--quick", "--repeats=1", "--only=state_scan", f"--json={figures}",
         "--threads", "1", "2", "--isa", "baseline"]
    )  # fmt: skip
    (section,) = json.loads(figures.read_text()).values()
    assert section["load"] == "load unknown at the start, unknown at the end"
    assert [(r["form"], r["threads"]) for r in section["results"]] == [
        ("reference", 1), ("cpu, baseline", 1), ("reference", 2), ("cpu, baseline", 2),
    ]  # fmt: skip
    assert os.environ[cpu.ISA_ENVIRONMENT] == cpu.supported_isas()[-1]
    assert torch.get_num_threads() == before


class FakeGpu(bench.Clock):
    """A device that takes 2 ms for whatever it is told to, and moves 1 GB in a second."""

    def __init__(self, exponentials_per_second):
        self.cuda = True
        self.flush = torch.empty(0)
        self.calls = 0
        self.exponential_rate = exponentials_per_second

    def __call__(self, call):
        self.calls += 1
        call()
        return 2.0

    def peak(self, call):
        call()
        return 5_000_000


def fake_case(exponentials, output_channels):
    """Inputs of 4000 and 400 bytes; an output that is no copy of the first."""
    x = torch.randn(50, 20, requires_grad=True)
    w = torch.randn(50, 2, requires_grad=True)

    def call(x, w, backend=None):
        return x[:, :output_channels] * w.sum()

    return bench_cases.Case("gate", "50x20", [x, w], call, exponentials)


def test_on_a_gpu_times_are_compared_with_the_bytes_that_must_move(monkeypatch):
    monkeypatch.setattr(bench, "_COPY_BYTES", 10**6)  # 2 * 1e6 bytes in 2 ms: 1 GB/s
    clock, case = FakeGpu(exponentials_per_second=1e9), fake_case(10, output_channels=5)
    for _ in range(2):
        copies, clock.calls = clock.calls, 0
        (result,) = bench.measure(case, {"a form": case.call}, clock, repeats=3)
    # The copy is timed in the first run alone; the rest are four rounds of both passes.
    assert (copies, clock.calls) == (28, 8)
    assert (result.forward_median, result.both_median, result.memory) == (2, 2, 5)
    # Forward: 4400 bytes of inputs, 1000 of output. Both: the inputs twice and their gradients,
    # the output and its gradient.
    assert result.floor == pytest.approx(2 / 5.4e-3)
    assert result.bandwidth == pytest.approx(5.4e-6 / 2e-3)
    assert result.floor_both == pytest.approx(2 / 15.2e-3)
    assert result.bandwidth_both == pytest.approx(15.2e-6 / 2e-3)


def test_on_a_gpu_the_exponentials_can_be_the_floor(monkeypatch):
    monkeypatch.setattr(bench, "_COPY_BYTES", 10**6)
    clock, case = FakeGpu(exponentials_per_second=1e6), fake_case(300, output_channels=20)
    (result,) = bench.measure(case, {"a form": case.call}, clock, repeats=1)
    # The backward computes them again.
    assert result.floor == pytest.approx(2 / 0.3)
    assert result.floor_both == pytest.approx(2 / 0.6)


def test_the_table_of_a_gpu_has_floors_and_a_dash_for_what_did_not_run():
    both = bench.Result("gate", "s", "bfloat16", "triton", 1, 1, 2, 3, 4, 5, 6, 7, 1.25, 800, 2, 90)
    forward = bench.Result("gate", "s", "bfloat16", "reference", 1, 1, 2, 1, None, None, None, 7, 9)
    head, rule, *rows = bench.table([both, forward]).splitlines()
    assert len({line.count("|") for line in (head, rule, *rows)}) == 1
    assert head.endswith("| MB | forward / floor | GB/s | forward + backward / floor | GB/s |")
    assert rows[0].endswith("| 7.0 | 1.25 | 800 | 2.00 | 90 |")
    assert rows[1].endswith("| - | - | 7.0 | 9.00 | - | - | - |")


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
