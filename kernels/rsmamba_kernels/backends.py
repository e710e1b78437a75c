"""Kernels as backends: modules with ``forward`` and ``backward``, imported when they first run."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rsmamba_kernels import cpu, triton_support
from rsmamba_kernels.dispatch import Backend, Request

#: Name -> (priority, why it cannot take a device and dtypes). Both can run on a CPU only where
#: Triton is in its interpreter: then the C++ kernels come first.
_KINDS: dict[str, tuple[int, Callable[[str, tuple[torch.dtype, ...]], str | None]]] = {
    "cpu": (10, cpu.refuses),
    "triton": (5, triton_support.refuses),
}


def kernels(kind: str, package: str, sizes: Sequence[int] = (), what: str = "") -> Backend:
    """The backend of an operator's own kernels.

    A module whose kernels have other limits has a function ``refuses``: from the shapes of the
    tensors that are there to why it cannot take them, or None if it can.

    Args:
        kind: ``"cpu"`` or ``"triton"``: its name, and that of its module in the package.
        package: The operator's package.
        sizes: Sizes that the kernels are written for, if not all.
        what: What the sizes count.
    """
    priority, refuses_tensors = _KINDS[kind]

    def function(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return getattr(importlib.import_module(f"{package}.{kind}"), name)(*args)

        return call

    def refuses(request: Request) -> str | None:
        if sizes and request.size and request.size not in sizes:
            known = ", ".join(map(str, sizes))
            return f"it is written for {known} {what}, not for {request.size}"
        if request.wrapped:
            return "it needs plain tensors with data, not wrapped or traced ones"
        if request.empty:
            return "a tensor is empty"
        if problem := refuses_tensors(request.device, request.dtypes):
            return problem
        # Under a tracer there are no shapes: the choice is made once more when the graph runs.
        limits = getattr(importlib.import_module(f"{package}.{kind}"), "refuses", None)
        return limits(request.shapes) if limits and request.shapes else None

    return Backend(
        kind,
        forward=function("forward"),
        backward=function("backward"),
        priority=priority,
        refuses=refuses,
    )
