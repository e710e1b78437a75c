"""Which implementation of an operator runs: argument > ``RSMAMBA_KERNELS`` > automatic.

A backend plugs in with one line, ``register("selective_scan", Backend(...))``, beside its code.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Environment variable that names a backend for every operator that has it.
ENVIRONMENT = "RSMAMBA_KERNELS"
AUTOMATIC = "auto"


class BackendError(RuntimeError):
    """A backend was asked for by name and does not exist or cannot run here."""


def _always(sample: Tensor) -> str | None:
    """A backend that takes every tensor."""
    return None


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        name: What users write in ``backend=`` and ``RSMAMBA_KERNELS``.
        function: The implementation, with the operator's arguments less ``backend``.
        priority: The automatic choice is the highest one that accepts the tensor.
        refuses: Why it cannot take tensors like the given one (its device, dtype, a missing
            compiler), or None if it can.
    """

    name: str
    function: Callable[..., Tensor]
    priority: int = 0
    refuses: Callable[[Tensor], str | None] = _always


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


_REGISTRY: dict[str, dict[str, Backend]] = {}


def register(operator: str, backend: Backend) -> None:
    """Add a backend to an operator; a second one of the same name replaces the first."""
    _REGISTRY.setdefault(operator, {})[backend.name] = backend


def operators() -> tuple[str, ...]:
    """Names of all operators."""
    return tuple(sorted(_REGISTRY))


def resolve(operator: str, sample: Tensor, backend: str | None = None) -> Backend:
    """Choose the implementation.

    Args:
        operator: Name of the operator.
        sample: Its first tensor argument: device and dtype decide.
        backend: A name, ``"auto"``, or None to ask ``RSMAMBA_KERNELS`` and then decide alone.

    Raises:
        BackendError: If the name is unknown, or the backend cannot take the tensor.
    """
    return _choose(operator, sample, backend)[0]


def call(operator: str, sample: Tensor, backend: str | None) -> Callable[..., Tensor]:
    """The function of the chosen backend."""
    return resolve(operator, sample, backend).function


def status(sample: Tensor | None = None) -> list[OperatorStatus]:
    """Every operator with its active backend, why, and which others were not taken.

    Args:
        sample: Tensor whose device and dtype are meant; by default an empty float32 tensor on the
            CUDA device if there is one, else on the CPU.

    Raises:
        BackendError: If ``RSMAMBA_KERNELS`` names a backend that cannot run.
    """
    if sample is None:
        sample = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")
    report = []
    for operator in operators():
        chosen, reason = _choose(operator, sample, None)
        others = tuple(
            (other.name, other.refuses(sample) or f"{chosen.name} is preferred")
            for other in _ranked(operator)
            if other is not chosen
        )
        report.append(OperatorStatus(operator, chosen.name, reason, others))
    return report


def _ranked(operator: str) -> list[Backend]:
    return sorted(_REGISTRY[operator].values(), key=lambda b: b.priority, reverse=True)


def _choose(operator: str, sample: Tensor, name: str | None) -> tuple[Backend, str]:
    """The backend and the reason for it."""
    if name is not None:
        source = f"backend={name!r}"
    else:
        name = os.environ.get(ENVIRONMENT) or AUTOMATIC
        source = f"{ENVIRONMENT}={name}"
        # The variable speaks of all operators at once; one that lacks the backend decides alone.
        if name not in _REGISTRY[operator] and any(name in b for b in _REGISTRY.values()):
            name = AUTOMATIC
    if name == AUTOMATIC:
        for candidate in _ranked(operator):
            if candidate.refuses(sample) is None:
                return candidate, f"fastest available on {sample.device.type}"
        raise BackendError(
            f"{operator}: no backend takes {sample.dtype} on {sample.device}; "
            "move the tensors to the CPU or to float32"
        )
    if name not in _REGISTRY[operator]:
        known = ", ".join([AUTOMATIC, *sorted(_REGISTRY[operator])])
        raise BackendError(f"{source}: {operator} has no such backend; choose one of {known}")
    chosen = _REGISTRY[operator][name]
    if why := chosen.refuses(sample):
        raise BackendError(f"{source}: {operator} cannot use it here ({why}); use {AUTOMATIC!r}")
    return chosen, f"asked for by {source}"
