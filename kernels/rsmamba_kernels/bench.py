"""Times every operator on every backend: ``python -m rsmamba_kernels.bench``.

All forms of a case run in turn in one process, because machines are shared and noisy: compare
figures of one run only. On a GPU the caches are flushed between calls, and the floor is the larger
of the bytes that must move (at the copy bandwidth measured in the same run) and the exponentials
that must be computed (at 16 per clock and multiprocessor); see :func:`least`.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsmamba_kernels import cpu, dispatch
from rsmamba_kernels.bench_cases import Case, cases
from rsmamba_kernels.dispatch import REFERENCE, Request

#: A form of an operator: takes the case's tensors.
Form = Callable[..., Tensor]
#: Of the copy that the bandwidth is measured with: far more than a cache holds.
_COPY_BYTES = 2**30
#: PyTorch forms need this many times the bytes of the largest tensor, times the states.
_REFERENCE_TENSORS = 8


@dataclass(frozen=True)
class Result:
    """Milliseconds of one form of a case; None where a form was too large for the memory.

    ``ratio`` and ``ratio_both`` compare medians with the first form of the case; ``memory`` is the
    most that a forward without gradients allocates, its output included, in MB (1e6 bytes). Of
    GPUs: ``floor`` is the median over the least time possible, ``bandwidth`` the bytes that must
    move per second, in 1e9; both are of the forward, with ``_both`` of forward + backward.
    """

    operator: str
    shape: str
    dtype: str
    form: str
    threads: int
    forward_min: float
    forward_median: float
    ratio: float
    both_min: float | None
    both_median: float | None
    ratio_both: float | None
    memory: float
    floor: float | None = None
    bandwidth: float | None = None
    floor_both: float | None = None
    bandwidth_both: float | None = None


def forms(case: Case, isas: Sequence[str], to_beat: dict[str, Form]) -> dict[str, Form]:
    """The forms of a case that can run here, the one to compare with first."""
    first = case.tensors[0]
    dtypes = tuple(t.dtype for t in case.tensors)
    request = Request(first.device.type, dtypes, case.size)
    found: dict[str, Form] = {}
    if case.operator in to_beat and (case.operator != "selective_scan" or first.shape[0] == 1):
        found["torch"] = to_beat[case.operator]
    for name, backend in dispatch.entry(case.operator).backends.items():
        if backend.refuses(request) is not None:
            continue

        def run(*tensors: Tensor, name: str = name) -> Tensor:
            return case.call(*tensors, backend=name)

        if name == "cpu" and isas:
            for isa in isas:
                found[f"cpu, {isa}"] = _with_isa(run, isa)
        else:
            found[name] = run
    return found


def _with_isa(form: Form, isa: str) -> Form:
    def run(*tensors: Tensor) -> Tensor:
        os.environ[cpu.ISA_ENVIRONMENT] = isa
        return form(*tensors)

    return run


class Clock:
    """Milliseconds of a call on a device.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        # Larger than any level 2 cache.
        self.flush = torch.empty(2**28 if self.cuda else 0, dtype=torch.int8, device=device)

    def __call__(self, call: Callable[[], object]) -> float:
        """Time one call."""
        if not self.cuda:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        self.flush.zero_()
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        call()
        end_event.record()
        end_event.synchronize()
        return start_event.elapsed_time(end_event)

    def peak(self, call: Callable[[], object]) -> int:
        """Most bytes that a call has allocated for tensors at one time."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            call()
        # The public list of events holds no allocation that was made inside an operation.
        raw = profile.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in raw if e.name() == "[memory]")
        return max(itertools.accumulate((size for _, size in changes), initial=0))

    @functools.cached_property
    def copy_bandwidth(self) -> float:
        """Bytes per second, read and written, of the device's own copy; measured once."""
        source = torch.empty(_COPY_BYTES, dtype=torch.int8, device=self.flush.device)
        target = torch.empty_like(source)
        times = [self(lambda: target.copy_(source)) for _ in range(20)]
        return 2 * source.numel() / (1e-3 * statistics.median(times[5:]))

    @functools.cached_property
    def exponential_rate(self) -> float:
        """Exponentials per second that the GPU's special function units can compute."""
        properties = torch.cuda.get_device_properties(0)
        return 16 * properties.multi_processor_count * properties.clock_rate * 1e3

    def floor(self, bytes_: int, exponentials: int) -> float:
        """Milliseconds that this device needs at least."""
        return 1e3 * max(bytes_ / self.copy_bandwidth, exponentials / self.exponential_rate)


def measure(case: Case, found: dict[str, Form], clock: Clock, repeats: int) -> list[Result]:
    """Run all forms in turn, ``repeats`` times after one round without a watch."""
    with torch.no_grad():
        output = next(iter(found.values()))(*case.tensors)
    cotangent = torch.randn_like(output)
    runs: dict[str, tuple[list[float], list[float]]] = {}
    too_large = set()

    def forward(form: Form) -> None:
        with torch.no_grad():
            form(*case.tensors)

    def both(form: Form) -> None:
        torch.autograd.grad(form(*case.tensors), case.tensors, cotangent)

    for round_ in range(repeats + 1):
        for name, form in found.items():
            series = runs.setdefault(name, ([], []))
            # Each form once without a watch: the one before it left its own data in the caches.
            forward(form)
            series[0].append(clock(lambda form=form: forward(form)))  # type: ignore[misc]
            if round_ == 0 and name == REFERENCE and _is_too_large(case):
                too_large.add(name)
            if name in too_large:
                continue
            both(form)
            series[1].append(clock(lambda form=form: both(form)))  # type: ignore[misc]
    base, results = next(iter(runs)), []
    for name, form in found.items():
        peak = clock.peak(lambda form=form: forward(form))  # type: ignore[misc]
        result = _result(case, name, runs[name], runs[base], peak)
        results.append(_with_floor(result, case, output, clock) if clock.cuda else result)
    return results


def _is_too_large(case: Case) -> bool:
    """Whether the reference's intermediate tensors would fill a GPU."""
    if case.tensors[0].device.type != "cuda":
        return False
    numbers = max(t.numel() for t in case.tensors) * max(1, case.size)
    free, _ = torch.cuda.mem_get_info()
    return 4 * numbers * _REFERENCE_TENSORS > free


def _result(
    case: Case,
    name: str,
    series: tuple[list[float], list[float]],
    base: tuple[list[float], list[float]],
    peak: int,
) -> Result:
    """Summarise the times of a form, less those of the first round."""
    forward, both = (statistics.median(times[1:]) if times[1:] else None for times in series)
    bases = [statistics.median(times[1:]) if times[1:] else None for times in base]
    assert forward is not None and bases[0] is not None  # noqa: S101 - every form runs forward
    return Result(
        case.operator,
        case.shape,
        str(case.tensors[0].dtype).removeprefix("torch."),
        name,
        torch.get_num_threads(),
        min(series[0][1:]),
        forward,
        bases[0] / forward,
        None if both is None else min(series[1][1:]),
        both,
        None if both is None or bases[1] is None else bases[1] / both,
        peak / 1e6,
    )


def least(case: Case, output: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes that must move and exponentials that must be computed, by a forward and by both passes.

    The forward reads the inputs and writes the output. The backward reads the inputs again and the
    gradient of the output, writes the gradients of the inputs, and computes the exponentials again:
    whatever else it could have kept takes more bytes than the inputs. Kernels that compute
    exponentials a third time (states recomputed before the way back) stay above this floor.
    """
    inputs = sum(t.nbytes for t in case.tensors)
    forward = inputs + output.nbytes
    backward = inputs + output.nbytes + inputs
    return (forward, case.exponentials), (forward + backward, 2 * case.exponentials)


def _with_floor(result: Result, case: Case, output: Tensor, clock: Clock) -> Result:
    """The result with floors and bandwidths."""
    (bytes_, exponentials), (bytes_both, exponentials_both) = least(case, output)
    result = replace(
        result,
        floor=result.forward_median / clock.floor(bytes_, exponentials),
        bandwidth=bytes_ / result.forward_median / 1e6,
    )
    if result.both_median is None:
        return result
    return replace(
        result,
        floor_both=result.both_median / clock.floor(bytes_both, exponentials_both),
        bandwidth_both=bytes_both / result.both_median / 1e6,
    )


def machine(device: str) -> str:
    """Processor or GPU, and the versions that matter."""
    name = platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").is_file():
        match = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        name = match[1] if match else name
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def table(results: Sequence[Result]) -> str:
    """Markdown, one line per form; times are min / median in milliseconds."""
    cuda = any(r.floor is not None for r in results)
    head = (
        "| operator | shape | dtype | form | threads | forward | x | forward + backward | x | MB |"
    )
    columns = " forward / floor | GB/s | forward + backward / floor | GB/s |" if cuda else ""
    lines = [head + columns, "|---" * (14 if cuda else 10) + "|"]
    for r in results:
        both = "-" if r.both_median is None else f"{r.both_min:.3f} / {r.both_median:.3f}"
        line = (
            f"| {r.operator} | {r.shape} | {r.dtype} | {r.form} | {r.threads} "
            f"| {r.forward_min:.3f} / {r.forward_median:.3f} | {r.ratio:.1f} | {both} "
            f"| {_number(r.ratio_both, 1)} | {r.memory:.1f} |"
        )
        if cuda:
            line += f" {_number(r.floor, 2)} | {_number(r.bandwidth, 0)} |"
            line += f" {_number(r.floor_both, 2)} | {_number(r.bandwidth_both, 0)} |"
        lines.append(line)
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_section(path: Path, title: str, text: str) -> None:
    """Replace, or add, the section of a machine in a Markdown file."""
    old = path.read_text() if path.is_file() else "# Benchmarks of the operators\n"
    section = f"## {title}\n\n{text}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if pattern.search(old):
        new = pattern.sub(lambda _: section + "\n", old)
    else:
        new = f"{old.rstrip()}\n\n{section}"
    path.write_text(new.rstrip() + "\n")


def write_figures(path: Path, title: str, figures: dict[str, Any]) -> None:
    """Replace, or add, the figures of a machine in a JSON file: an object with one member each."""
    report = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(report | {title: figures}, indent=1) + "\n")


def baselines(path: Path | None) -> dict[str, Form]:
    """The functions of a Python file that are named as operators."""
    if path is None:
        return {}
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: S101 - it is a Python file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: getattr(module, name) for name in dispatch.operators() if hasattr(module, name)}


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put the number of threads and the instruction set back."""
    threads, isa = torch.get_num_threads(), os.environ.get(cpu.ISA_ENVIRONMENT)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop(cpu.ISA_ENVIRONMENT, None)
        if isa is not None:
            os.environ[cpu.ISA_ENVIRONMENT] = isa


def _load() -> str:
    """Processes that run or wait, over the last minute; Windows does not count them."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("rsmamba_kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="on a CPU with several cores 1 and 2, else 1"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--isa",
        nargs="*",
        choices=cpu.ISAS,
        help="instruction sets to compare on a CPU, as far as it has them; by default all, "
        "without a name the one that is used",
    )
    parser.add_argument("--only", help="operators whose name contains this")
    parser.add_argument("--baselines", type=Path, help="Python file with PyTorch forms to beat")
    parser.add_argument(
        "--markdown", type=Path, help="file whose section for this machine to write"
    )
    parser.add_argument("--json", type=Path, help="file whose figures for this machine to write")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    arguments = parser.parse_args(argv)
    on_cpu = arguments.device == "cpu"
    if arguments.threads is None:
        arguments.threads = [1, 2] if on_cpu and (os.cpu_count() or 1) > 1 else [1]
    asked = cpu.ISAS[::-1] if arguments.isa is None else arguments.isa
    arguments.isa = [isa for isa in asked if on_cpu and isa in cpu.supported_isas()]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, run all cases, print and write the table."""
    arguments = _arguments(argv)
    torch.manual_seed(0)
    clock = Clock(arguments.device)
    to_beat = baselines(arguments.baselines)
    results: list[Result] = []
    load = f"load {_load()} at the start"
    with _settings_kept():
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for case in cases(arguments.device, arguments.quick):
                if arguments.only and arguments.only not in case.operator:
                    continue
                found = forms(case, arguments.isa, to_beat)
                part = measure(case, found, clock, arguments.repeats)
                print(table(part), flush=True)
                results += part
    load += f", {_load()} at the end"
    note = (
        f"{load}. Milliseconds, min / median of {arguments.repeats} calls in turn; x: the first "
        "form's median over this one's; MB: the most that a forward without gradients allocates, "
        "its output included."
    )
    if clock.cuda:
        note += f" Floors are for copies at {clock.copy_bandwidth / 1e9:.0f} GB/s."
    name = machine(arguments.device)
    if arguments.markdown:
        write_section(arguments.markdown, name, f"{note}\n\n{table(results)}")
    if arguments.json:
        figures = {"load": load, "results": [asdict(r) for r in results]}
        write_figures(arguments.json, name, figures)
    print(f"{name}; {note}")


if __name__ == "__main__":
    main()
