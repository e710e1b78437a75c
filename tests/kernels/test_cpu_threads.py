"""The C++ backend in a process that is not its own: default dtypes, interrupts, no more threads."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from rsmamba_kernels import cpu
from tests.kernels.cases import OPERATORS, needs_library, run, scan_inputs

pytestmark = needs_library


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"gate"}))
def test_the_default_dtype_changes_nothing(name, dtype, default_dtype):
    function, make = OPERATORS[name]
    inputs = make()
    y, gradients = run(function, inputs, "cpu")
    cotangent = {key: g.clone() for key, g in gradients.items()}
    default_dtype(dtype)
    leaves = {key: t.clone().requires_grad_() for key, t in inputs.items()}
    again = function(**leaves, backend="cpu")
    assert torch.equal(again, y)
    default_dtype(torch.float32)
    _, gradients = run(function, inputs, "cpu")
    assert all(torch.equal(gradients[key], cotangent[key]) for key in inputs)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_backends_are_tried_and_run_under_any_default_dtype(dtype):
    """In a process of its own: a backend is tried once."""
    code = f"""
    import torch
    torch.set_default_dtype(torch.{dtype})
    from rsmamba_kernels import selective_scan, status
    assert {{s.backend for s in status("cpu") if s.operator != "gate"}} == {{"cpu"}}
    make = lambda *shape: torch.randn(shape, dtype=torch.float32).requires_grad_()
    u, dt, B, C = make(2, 50, 70), make(2, 50, 70), make(2, 50, 16), make(2, 50, 16)
    A = -torch.rand(70, 16, dtype=torch.float32)
    results = []
    for backend in ("cpu", "reference"):
        y = selective_scan(u, dt, A, B, C, backend=backend)
        results.append((y, *torch.autograd.grad(y.sum(), [u, dt, B, C])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    """
    environment = {k: v for k, v in os.environ.items() if k != "RSMAMBA_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def many(length=150):
    """Enough work for several threads."""
    return scan_inputs(8, length, 768, 16)


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_thread_that_cannot_start_costs_time_only(monkeypatch):
    function, _ = OPERATORS["selective_scan"]
    inputs = many()
    wanted = function(**inputs, backend="cpu")
    pool = cpu._pool()
    submit, calls = pool.submit, []

    def second_fails(task):
        calls.append(task)
        if len(calls) % 3 == 2:
            raise RuntimeError("can't start new thread")
        return submit(task)

    monkeypatch.setattr(pool, "submit", second_fails)
    for _ in range(5):
        calls.clear()
        assert torch.equal(function(**inputs, backend="cpu"), wanted)
        assert len(calls) == 2


@pytest.mark.usefixtures("two_threads")
def test_an_interrupt_waits_for_the_threads_that_still_write(monkeypatch):
    """Else they would write into memory that this call has given back."""
    function, _ = OPERATORS["selective_scan"]
    inputs = many()
    running = []
    library, _ = cpu._load(cpu.LIBRARY)

    class Watched:
        def rsm_run(self, *args):
            try:
                running.append(1)
                if running.count(1) == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                return library.rsm_run(*args)
            finally:
                running.append(-1)

    monkeypatch.setattr(cpu, "_load", lambda path: (Watched(), ""))
    # A process in the background inherits that it ignores the interrupt.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            function(**inputs, backend="cpu")
    finally:
        signal.signal(signal.SIGINT, before)
    assert running.count(1) == running.count(-1) >= 2


def test_an_unknown_instruction_set_is_said_once(monkeypatch, caplog):
    monkeypatch.setenv(cpu.ISA_ENVIRONMENT, "sse2")
    monkeypatch.delenv("RSMAMBA_KERNELS", raising=False)
    function, make = OPERATORS["selective_scan"]
    for _ in range(2):
        function(**make())
    assert caplog.text.count("RSMAMBA_CPU_ISA=sse2: choose one of") == 1
