"""Times every operator on every backend: ``python -m rsmamba_kernels.bench``.

All forms of a case run in turn in one process, because machines are shared and noisy: compare
figures of one run only. On a GPU the caches are flushed between calls, and the floor is the larger
of the bytes that must move (at the copy bandwidth measured in the same run) and the exponentials
that must be computed (at 16 per clock and multiprocessor).
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsmamba_kernels import (
    conv1d_silu,
    cpu,
    dispatch,
    gate,
    selective_scan_multi,
    state_fusion,
    state_scan,
)
from rsmamba_kernels.dispatch import REFERENCE, Request

#: A form of an operator: takes the case's tensors.
Form = Callable[..., Tensor]
#: PyTorch forms need this many times the bytes of the largest tensor, times the states.
_REFERENCE_TENSORS = 8


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    Attributes:
        operator: Name in the registry.
        shape: For the reader.
        tensors: Inputs; those of a floating dtype require gradients.
        call: The public function; takes the tensors and ``backend``.
        exponentials: Exponentials and logarithms that a forward must compute.
        size: See :class:`rsmamba_kernels.dispatch.Request`.
    """

    operator: str
    shape: str
    tensors: list[Tensor]
    call: Callable[..., Tensor]
    exponentials: int = 0
    size: int = 0


@dataclass(frozen=True)
class Result:
    """Milliseconds of one form of a case; None where a form was too large for the memory.

    ``ratio`` and ``ratio_both`` compare medians with the first form of the case; ``floor`` and
    ``bandwidth`` (bytes that must move per second, in 1e9) are of GPUs.
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
    floor: float | None = None
    bandwidth: float | None = None


def _leaf(*shape: int, like: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return (scale * torch.randn(shape, device=like.device) + shift).to(like.dtype).requires_grad_()


def _weight(*shape: int, like: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return _leaf(*shape, like=like.float(), scale=scale, shift=shift)


def scan_case(like: Tensor, k: int, b: int, length: int, d: int, n: int = 16) -> Case:
    """Selective scan in k directions over a square grid with a class token in the middle."""
    side = int((length - 1) ** 0.5)
    grid = (side, (length - 1) // side)
    orders = tuple(range(k))
    rows = [_leaf(k, b, length, w, like=like) for w in (d, d, n, n)]
    u, dt, B, C = rows
    A = (-torch.exp(_weight(k, d, n, like=like))).detach().requires_grad_()
    D, bias = _weight(k, d, like=like), _weight(k, d, like=like, shift=-3)

    def call(*tensors: Tensor, backend: str | None = None) -> Tensor:
        *args, dt_bias = tensors
        return selective_scan_multi(
            *args, dt_bias=dt_bias, orders=orders, grid=grid, cls="middle", backend=backend
        )

    shape = f"K{k} B{b} L{length} D{d} N{n}"
    work = k * b * length * d
    return Case("selective_scan", shape, [u, dt, A, B, C, D, bias], call, work * (n + 2), n)


def convolution_case(like: Tensor, k: int, b: int, length: int, d: int) -> Case:
    """Causal convolution along k orders."""
    side = int((length - 1) ** 0.5)
    path = {"orders": tuple(range(k)), "grid": (side, (length - 1) // side), "cls": "middle"}
    tensors = [
        _leaf(b, length, d, like=like),
        _weight(k, d, 4, like=like),
        _weight(k, d, like=like),
    ]

    def call(*tensors: Tensor, backend: str | None = None) -> Tensor:
        return conv1d_silu(*tensors, **path, backend=backend)  # type: ignore[arg-type]

    shape = f"K{k} B{b} L{length} D{d} W4"
    return Case("conv1d_silu", shape, tensors, call, k * b * length * d, 4)


def gate_case(like: Tensor, b: int, length: int, d: int) -> Case:
    """Gate whose z is one half of a wider row, as in a mixer."""
    z = torch.randn(b, length, 2 * d, device=like.device).to(like.dtype)[..., d:].requires_grad_()
    tensors = [_leaf(b, length, d, like=like), z]
    return Case("gate", f"B{b} L{length} D{d}", tensors, gate, b * length * d)


def state_case(like: Tensor, b: int, side: int, d: int) -> Case:
    """State scan."""
    x, dt, B = (_leaf(b, side, side, w, like=like) for w in (d, d, 1))
    A = (-torch.exp(_weight(d, like=like))).detach().requires_grad_()

    def call(*tensors: Tensor, backend: str | None = None) -> Tensor:
        return state_scan(*tensors[:-1], dt_bias=tensors[-1], backend=backend)

    work = b * side * side * d
    bias = _weight(d, like=like, shift=-2)
    return Case("state_scan", f"B{b} {side}x{side}x{d}", [x, dt, A, B, bias], call, 3 * work)


def fusion_case(like: Tensor, b: int, side: int, d: int) -> Case:
    """State fusion with the output and skip weights."""
    h, x, C = (_leaf(b, side, side, w, like=like) for w in (d, d, 1))
    kernels = [_weight(d, 3, 3, like=like) for _ in range(3)]
    tensors = [h, x, C, _weight(d, like=like), *kernels, _weight(3, like=like)]
    return Case("state_fusion", f"B{b} {side}x{side}x{d}", tensors, state_fusion)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """RoMA-Base and the stages of Spatial-Mamba-Tiny at 224 pixels, one case after the other."""
    cuda = device == "cuda"
    like = torch.empty(0, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    b, d = (128, 768) if cuda else (4, 768)
    if quick:
        b, d = 1, 64
    yield scan_case(like, 1, b, 197, d)
    yield scan_case(like, 4, b, 197, d)
    yield convolution_case(like, 4, b, 197, d)
    yield gate_case(like, b, 197, d)
    for side, width in ((56, 128), (28, 256), (14, 512), (7, 1024))[: 1 if quick else 4]:
        yield state_case(like, b, side, width)
        yield fusion_case(like, b, side, width)


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

    def copy_bandwidth(self) -> float:
        """Bytes per second, read and written, of the device's own copy."""
        source = torch.empty(2**30, dtype=torch.int8, device=self.flush.device)
        target = torch.empty_like(source)
        times = [self(lambda: target.copy_(source)) for _ in range(20)]
        return 2 * source.numel() / (1e-3 * statistics.median(times[5:]))


def measure(case: Case, found: dict[str, Form], clock: Clock, repeats: int) -> list[Result]:
    """Run all forms in turn, ``repeats`` times after one round without a watch."""
    cotangent: dict[str, Tensor] = {}
    runs: dict[str, tuple[list[float], list[float]]] = {}
    too_large = set()

    def forward(form: Form) -> None:
        with torch.no_grad():
            form(*case.tensors)

    def both(name: str, form: Form) -> None:
        y = form(*case.tensors)
        gradient = cotangent.setdefault("y", torch.randn_like(y))
        torch.autograd.grad(y, case.tensors, gradient)

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
            both(name, form)
            series[1].append(clock(lambda n=name, f=form: both(n, f)))  # type: ignore[misc]
    return [_result(case, name, runs, clock) for name in found]


def _is_too_large(case: Case) -> bool:
    """Whether the reference's intermediate tensors would fill a GPU."""
    if case.tensors[0].device.type != "cuda":
        return False
    numbers = max(t.numel() for t in case.tensors) * max(1, case.size)
    free, _ = torch.cuda.mem_get_info()
    return 4 * numbers * _REFERENCE_TENSORS > free


def _result(
    case: Case, name: str, runs: dict[str, tuple[list[float], list[float]]], clock: Clock
) -> Result:
    base = next(iter(runs.values()))
    medians = [statistics.median(series[1:]) if series[1:] else None for series in runs[name]]
    bases = [statistics.median(series[1:]) if series[1:] else None for series in base]
    forward, both = medians
    assert forward is not None and bases[0] is not None  # noqa: S101 - every form runs forward
    floor = bandwidth = None
    if clock.cuda:
        bytes_ = sum(t.nbytes for t in case.tensors) + case.tensors[0].nbytes
        bandwidth = bytes_ / forward / 1e6
        floor = forward / _floor_ms(case, bytes_, clock)
    return Result(
        case.operator,
        case.shape,
        str(case.tensors[0].dtype).removeprefix("torch."),
        name,
        torch.get_num_threads(),
        min(runs[name][0][1:]),
        forward,
        bases[0] / forward,
        None if both is None else min(runs[name][1][1:]),
        both,
        None if both is None or bases[1] is None else bases[1] / both,
        floor,
        bandwidth,
    )


def _floor_ms(case: Case, bytes_: int, clock: Clock) -> float:
    properties = torch.cuda.get_device_properties(0)
    rate = 16 * properties.multi_processor_count * properties.clock_rate * 1e3
    return 1e3 * max(bytes_ / clock.copy_bandwidth(), case.exponentials / rate)


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
    head = "| operator | shape | dtype | form | threads | forward | x | forward + backward | x |"
    lines = [head + (" / floor | GB/s |" if cuda else "")]
    lines.append("|---" * (11 if cuda else 9) + "|")
    for r in results:
        both = "-" if r.both_median is None else f"{r.both_min:.3f} / {r.both_median:.3f}"
        ratio = "-" if r.ratio_both is None else f"{r.ratio_both:.1f}"
        line = (
            f"| {r.operator} | {r.shape} | {r.dtype} | {r.form} | {r.threads} "
            f"| {r.forward_min:.3f} / {r.forward_median:.3f} | {r.ratio:.1f} | {both} | {ratio} |"
        )
        lines.append(line + (f" {r.floor:.2f} | {r.bandwidth:.0f} |" if r.floor else ""))
    return "\n".join(lines)


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


def baselines(path: Path | None) -> dict[str, Form]:
    """The functions of a Python file that are named as operators."""
    if path is None:
        return {}
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: S101 - it is a Python file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: getattr(module, name) for name in dispatch.operators() if hasattr(module, name)}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, run all cases, print and write the table."""
    parser = argparse.ArgumentParser("rsmamba_kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--isa", nargs="*", default=[], help="instruction sets to compare (CPU)")
    parser.add_argument("--only", help="operators whose name contains this")
    parser.add_argument("--baselines", type=Path, help="Python file with PyTorch forms to beat")
    parser.add_argument(
        "--markdown", type=Path, help="file whose section for this machine to write"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    clock = Clock(arguments.device)
    to_beat = baselines(arguments.baselines)
    results: list[Result] = []
    started = os.getloadavg()[0]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for case in cases(arguments.device, arguments.quick):
            if arguments.only and arguments.only not in case.operator:
                continue
            found = forms(case, arguments.isa, to_beat)
            part = measure(case, found, clock, arguments.repeats)
            print(table(part), flush=True)
            results += part
    load = f"load {started:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    note = (
        f"{load}. Milliseconds, min / median of {arguments.repeats} calls in turn; x: the first "
        "form's median over this one's."
    )
    name = machine(arguments.device)
    if arguments.markdown:
        write_section(arguments.markdown, name, f"{note}\n\n{table(results)}")
    if arguments.json:
        report = {"machine": name, "load": load, "results": [asdict(r) for r in results]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{name}; {note}")


if __name__ == "__main__":
    main()
