"""Times the C++ operators against PyTorch, alternating in one run: the machine may be shared.

    python tests/benchmarks/bench_cpu.py [--threads 1 2] [--repeats 20] [--isa avx512 avx2]

Prints milliseconds (min / median) of forward and forward + backward for every backend, and the
ratio of the medians to the fastest form in PyTorch. Asserts nothing.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rsmamba_kernels import cpu, selective_scan, state_fusion, state_scan

Call = Callable[[], Tensor]


def scan_loop(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """The fastest forward known in PyTorch: one step at a time, in place, states as (B, N, D)."""
    delta = F.softplus(dt + bias)
    drive, rates = delta * u, A.t().contiguous()
    y = torch.empty_like(u)
    h = u.new_zeros(u.shape[0], *rates.shape)
    decay = torch.empty_like(h)
    for t in range(u.shape[1]):
        torch.mul(delta[:, t].unsqueeze(1), rates, out=decay).exp_()
        h.mul_(decay).addcmul_(B[:, t].unsqueeze(-1), drive[:, t].unsqueeze(1))
        y[:, t] = torch.bmm(C[:, t].unsqueeze(1), h).squeeze(1)
    return y.addcmul_(D, u)


def three_convolutions(
    h: Tensor, x: Tensor, C: Tensor, D: Tensor, k1: Tensor, k3: Tensor, k5: Tensor, alpha: Tensor
) -> Tensor:
    """Fusion in the form that oneDNN likes best: three channels-last depthwise convolutions."""
    image, fused = h.permute(0, 3, 1, 2), 0
    for dilation, kernel, weight in zip((1, 3, 5), (k1, k3, k5), alpha, strict=True):
        padded = F.pad(image, (dilation,) * 4, mode="replicate")
        weights = (weight * kernel).unsqueeze(1)
        fused = fused + F.conv2d(padded, weights, dilation=dilation, groups=h.shape[-1])
    return C * fused.permute(0, 2, 3, 1) + D * x


@dataclass
class Case:
    """One operator on one shape, with its forms: name -> (forward only, differentiable)."""

    name: str
    inputs: list[Tensor]
    forms: dict[str, tuple[Call, Call]]


def scan_case(b: int, length: int, d: int, n: int) -> Case:
    """Selective scan; in PyTorch the loop runs forward, the reference forward and backward."""
    u, dt, B, C = (torch.randn(b, length, k) for k in (d, d, n, n))
    A, D, bias = -torch.exp(torch.randn(d, n)), torch.randn(d), torch.randn(d) - 3
    inputs = [t.requires_grad_() for t in (u, dt, A, B, C, D, bias)]

    def call(backend: str) -> Call:
        return lambda: selective_scan(u, dt, A, B, C, D, dt_bias=bias, backend=backend)

    forms = {
        "torch": (lambda: scan_loop(*inputs), call("reference")),
        "cpu": (call("cpu"), call("cpu")),
    }
    return Case(f"selective_scan B{b} L{length} D{d} N{n}", inputs, forms)


def fusion_case(b: int, side: int, d: int) -> Case:
    """State fusion with the output and skip weights."""
    h, x, C = (torch.randn(b, side, side, k) for k in (d, d, 1))
    kernels = [torch.randn(d, 3, 3) for _ in range(3)]
    inputs = [t.requires_grad_() for t in (h, x, C, torch.randn(d), *kernels, torch.rand(3))]

    def in_torch() -> Tensor:
        return three_convolutions(*inputs)

    def in_cpp() -> Tensor:
        return state_fusion(*inputs, backend="cpu")

    forms = {"torch": (in_torch, in_torch), "cpu": (in_cpp, in_cpp)}
    return Case(f"state_fusion B{b} {side}x{side}x{d}", inputs, forms)


def state_case(b: int, side: int, d: int) -> Case:
    """State scan; in PyTorch the reference."""
    x, dt, B = (torch.randn(b, side, side, k) for k in (d, d, 1))
    A, bias = -torch.rand(d) - 0.1, torch.randn(d) - 2
    inputs = [t.requires_grad_() for t in (x, dt, A, B, bias)]

    def call(backend: str) -> Call:
        return lambda: state_scan(x, dt, A, B, dt_bias=bias, backend=backend)

    forms = {"torch": (call("reference"),) * 2, "cpu": (call("cpu"),) * 2}
    return Case(f"state_scan B{b} {side}x{side}x{d}", inputs, forms)


def milliseconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure(case: Case, isas: list[str], repeats: int) -> None:
    """Alternate all forms and print one line for each."""
    columns = ["torch", *isas]
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in columns}
    for _ in range(repeats + 1):
        for name in columns:
            if name != "torch":
                os.environ[cpu.ISA_ENVIRONMENT] = name
            form = "torch" if name == "torch" else "cpu"
            forward, differentiable = case.forms[form]
            gradient = torch.ones_like(case.inputs[0])

            def both(run: Call = differentiable, gradient: Tensor = gradient) -> None:
                torch.autograd.grad(run(), case.inputs, gradient)

            # Each form once without a watch: the one before it left its own data in the caches.
            with torch.no_grad():
                forward()
                times[name][0].append(milliseconds(forward))
            both()
            times[name][1].append(milliseconds(both))
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"\n{case.name}, {threads} thread(s), load {load:.1f}")
    slowest = [statistics.median(series[1:]) for series in times["torch"]]
    for name in columns:
        line = f"  {name:9}"
        label = ("forward", "forward + backward")
        for what, series, reference in zip(label, times[name], slowest, strict=True):
            low, middle = min(series[1:]), statistics.median(series[1:])
            line += f"  {what} {low:8.2f} / {middle:8.2f} ms {reference / middle:6.1f}x"
        print(line, flush=True)


def main() -> None:
    """Parse arguments and run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--isa", nargs="+", default=list(cpu.supported_isas()[::-1]))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for case in (
            scan_case(4, 197, 768, 16),
            fusion_case(4, 56, 128),
            fusion_case(4, 14, 512),
            state_case(4, 56, 128),
        ):
            measure(case, arguments.isa, arguments.repeats)


if __name__ == "__main__":
    main()
