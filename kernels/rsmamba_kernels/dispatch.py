"""Which implementation of an operator runs: argument > ``RSMAMBA_KERNELS`` > automatic.

An argument is an order: the backend runs or the call fails. The environment variable is a wish for
every tensor that the backend can take. The automatic choice is the fastest backend that agrees with
the reference on a small example, tried once per process.
"""

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)

#: Environment variable that names a backend for every operator that has it.
ENVIRONMENT = "RSMAMBA_KERNELS"
AUTOMATIC = "auto"
REFERENCE = "reference"

#: What a backend may differ from the reference on the example before it is switched off: wrong code
#: is off by far more, rounding by far less.
_PROBE_TOLERANCE = 1e-3


class BackendError(ValueError):
    """A backend was asked for by name and does not exist or cannot take these tensors."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a backend must know of a call to take or refuse it.

    Attributes:
        device: Type of the tensors' device.
        dtypes: Dtypes of all tensors.
        size: The operator's compiled-in size: states of a scan, taps of a convolution; 0 for any.
        empty: Whether a tensor has no elements.
        wrapped: Whether operations are recorded or transformed (jit tracing, ONNX, functorch).
        compiling: Whether torch.compile or torch.export looks on.
        shapes: Shapes of all tensors, where they are numbers: nothing while a tracer looks on.
    """

    device: str
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    size: int = 0
    empty: bool = False
    wrapped: bool = False
    compiling: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of an operator, either differentiable by itself or a pair of kernels.

    Attributes:
        name: What users write in ``backend=`` and ``RSMAMBA_KERNELS``.
        function: Differentiable implementation in terms of torch operations.
        forward: Kernel; takes the operator's tensors and options.
        backward: Its adjoint; takes the gradient, the output if the operator keeps it, and what the
            forward took. Returns one gradient for each tensor.
        priority: The automatic choice is the highest one that accepts; below 0 on request only.
        refuses: Why it cannot take a call, or None if it can.
    """

    name: str
    function: Callable[..., Tensor] | None = None
    forward: Callable[..., Tensor] | None = None
    backward: Callable[..., Sequence[Tensor]] | None = None
    priority: int = 0
    refuses: Callable[[Request], str | None] = lambda request: None


@dataclass(frozen=True, slots=True)
class OperatorStatus:
    """What :func:`status` says about one operator.

    Attributes:
        operator: Its public name.
        backend: The backend that runs.
        reason: Why that one.
        others: Pairs (backend, why it was not taken).
    """

    operator: str
    backend: str
    reason: str
    others: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Entry:
    """The backends of an operator, and arguments to try them on.

    Attributes:
        example: From a device, (tensors, options) of a small call; None leaves backends untried.
        keeps_output: Whether the backward takes the forward's output.
        backends: By name.
        problems: What was wrong with (backend, device) when it was tried, "" for nothing.
    """

    example: Callable[[str], tuple[list[Tensor | None], list[Any]]] | None = None
    keeps_output: bool = False
    backends: dict[str, Backend] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)


_REGISTRY: dict[str, Entry] = {}
#: Held during a trial; the thread that a trial runs in says so.
_ONE_TRIAL = threading.Lock()
_TRIAL = threading.local()


def entry(operator: str) -> Entry:
    """The operator's entry, made if it is not there."""
    return _REGISTRY.setdefault(operator, Entry())


def register(operator: str, backend: Backend) -> None:
    """Add a backend to an operator; a second one of the same name replaces the first."""
    entry(operator).backends[backend.name] = backend


def operators() -> tuple[str, ...]:
    """Names of all operators."""
    return tuple(sorted(_REGISTRY))


def resolve(operator: str, request: Request, backend: str | None = None) -> Backend:
    """Choose the implementation.

    Args:
        operator: Name of the operator.
        request: What is asked of it.
        backend: A name, ``"auto"``, or None to ask ``RSMAMBA_KERNELS`` and then decide alone.

    Raises:
        BackendError: If the name is unknown, or the argument's backend cannot take the call.
    """
    return _choose(operator, request, backend)[0]


def status(device: str | None = None) -> list[OperatorStatus]:
    """Every operator with its active backend, why, and which others were not taken.

    Args:
        device: Type of device; by default ``"cuda"`` if there is one, else ``"cpu"``. The dtype is
            float32.

    Raises:
        BackendError: If ``RSMAMBA_KERNELS`` names a backend that does not exist.
    """
    request = Request(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    report = []
    for operator in operators():
        chosen, reason = _choose(operator, request, None)
        others = tuple(
            (other.name, _refusal(operator, other, request) or f"{chosen.name} is preferred")
            for other in _ranked(operator)
            if other is not chosen
        )
        report.append(OperatorStatus(operator, chosen.name, reason, others))
    return report


def outside[T](task: Callable[[], T]) -> T:
    """Run a task in a thread of its own, free of this one's modes (autograd, autocast, tracing).

    It works on this thread's GPU and stream.
    """
    here = None
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        here = torch.cuda.current_device(), torch.cuda.current_stream()

    def run() -> T:
        if here is None:
            return task()
        with torch.cuda.device(here[0]), torch.cuda.stream(here[1]):
            return task()

    with ThreadPoolExecutor(1, thread_name_prefix="rsmamba-outside") as pool:
        return pool.submit(run).result()


def _ranked(operator: str) -> list[Backend]:
    backends = _REGISTRY[operator].backends.values()
    return sorted(backends, key=lambda b: b.priority, reverse=True)


def _choose(operator: str, request: Request, name: str | None) -> tuple[Backend, str]:
    """The backend and the reason for it."""
    backends = _REGISTRY[operator].backends
    wished = name is None
    if wished:
        name = os.environ.get(ENVIRONMENT) or AUTOMATIC
    source = f"{ENVIRONMENT}={name}" if wished else f"backend={name!r}"
    if name != AUTOMATIC and name not in backends:
        # A wish may name a backend that other operators have.
        everywhere = {known for other in _REGISTRY.values() for known in other.backends}
        candidates = everywhere if wished else set(backends)
        if name not in candidates:
            known = ", ".join([AUTOMATIC, *sorted(candidates)])
            raise BackendError(f"{source}: {operator} has no such backend; choose one of {known}")
    reason = f"fastest available on {request.device}"
    if name in backends:
        why = backends[name].refuses(request)
        if why is None:
            return backends[name], f"asked for by {source}"
        if not wished:
            raise BackendError(
                f"{source}: {operator} cannot use it here ({why}); use {AUTOMATIC!r}"
            )
        reason += f"; {source} cannot be used ({why})"
        _say_once(f"{operator}: {source} cannot be used ({why})", logging.WARNING)
    for candidate in _ranked(operator):
        if candidate.priority < 0:
            break
        if _refusal(operator, candidate, request) is None:
            _say_once(f"{operator} on {request.device}: {candidate.name}", logging.INFO)
            return candidate, reason
    raise BackendError(
        f"{operator}: no backend takes {request.dtypes[0]} on {request.device}; "
        "move the tensors to the CPU or to float32"
    )


@functools.cache
def _say_once(message: str, level: int) -> None:
    _LOG.log(level, message)


def _refusal(operator: str, backend: Backend, request: Request) -> str | None:
    """Why the automatic choice passes a backend over."""
    if why := backend.refuses(request):
        return why
    if backend.priority < 0:
        return "on request only"
    return _problem(operator, backend, request.device) or None


def _problem(operator: str, backend: Backend, device: str) -> str:
    """What the trial against the reference found; it is made once, while others wait for it."""
    known = _REGISTRY[operator].problems
    key = backend.name, device
    if key in known:
        return known[key]
    if getattr(_TRIAL, "runs", False):
        return ""  # the trial itself may use operators
    with _ONE_TRIAL:
        if key not in known:
            found = outside(lambda: _try(operator, backend, device))
            known[key] = found
            if found:
                _LOG.warning("%s: backend %r is off: %s", operator, backend.name, found)
    return known[key]


def _try(operator: str, backend: Backend, device: str) -> str:
    """Compare output and gradients with the reference in float64 on the CPU."""
    _TRIAL.runs = True
    this = _REGISTRY[operator]
    reference = this.backends.get(REFERENCE)
    if backend.forward is None or backend.backward is None or this.example is None:
        return ""
    if reference is None or reference.function is None:
        return ""
    tensors, options = this.example(device)
    leaves = [t if t is None else t.double().cpu().requires_grad_() for t in tensors]
    wanted = reference.function(*leaves, *options)
    cotangent = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view(wanted.shape)
    present = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad(wanted, present, cotangent))
    try:
        y = backend.forward(*tensors, *options)
        kept = [y] if this.keeps_output else []
        got = backend.backward(cotangent.to(y), *kept, *tensors, *options)
    except Exception as error:  # whatever a compiler or driver raises: there is the next backend
        return f"it failed on a small example ({type(error).__name__}: {error})"
    pairs = [(y, wanted)]
    pairs += [(g, next(gradients)) for g, leaf in zip(got, leaves, strict=True) if leaf is not None]
    if all(_agree(actual, expected.detach()) for actual, expected in pairs):
        return ""
    return "it disagrees with the reference on a small example"


def _agree(actual: Tensor, expected: Tensor) -> bool:
    error = (actual.double().cpu() - expected).abs().max()
    # Written so that NaN disagrees.
    return bool(error <= _PROBE_TOLERANCE * expected.abs().max())
