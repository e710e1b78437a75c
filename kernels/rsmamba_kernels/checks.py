"""Checks of an operator's arguments: each error names the argument, its value and the remedy."""

import os

import torch
from torch import Tensor

#: Environment variable that turns on the checks that read tensors' values.
DEBUG_ENVIRONMENT = "RSMAMBA_KERNELS_DEBUG"


def check_tensors(
    operator: str, dense: tuple[str, ...] = (), **expected: tuple[Tensor | None, tuple[int, ...]]
) -> None:
    """Check dtypes, devices, shapes and memory layout of an operator's tensors.

    Args:
        operator: Its name, for the messages.
        dense: Names of those whose last dimension must be contiguous.
        expected: Tensor (None for an optional one that is absent) and shape of each argument; all
            must be on the device of the first.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If a device, shape or layout is wrong.
    """
    first: tuple[str, Tensor] | None = None
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{operator}: {name} must be a floating-point tensor, not {kind}")
        if first is None:
            first = name, tensor
        if tensor.device != first[1].device:
            raise ValueError(
                f"{operator}: {name} is on {tensor.device} and {first[0]} on {first[1].device}; "
                "move them to one device"
            )
        if tensor.shape != shape:
            raise ValueError(
                f"{operator}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)} "
                f"for {first[0]} {tuple(first[1].shape)}"
            )
        if name in dense and shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{operator}: the last dimension of {name} {tuple(tensor.shape)} is not contiguous "
                f"(strides {tensor.stride()}); pass {name}.contiguous()"
            )


def check_rank(operator: str, name: str, tensor: Tensor, dimensions: str) -> None:
    """Check the number of dimensions of the tensor that the other shapes follow from.

    Args:
        operator: Its name, for the message.
        name: Name of the argument.
        tensor: Its value.
        dimensions: As written in the documentation, ``"(B, L, D)"``.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has another number of dimensions.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {name} must be a tensor, not {type(tensor).__name__}")
    if tensor.ndim != dimensions.count(",") + 1:
        raise ValueError(
            f"{operator}: {name} has shape {tuple(tensor.shape)}, expected {dimensions}"
        )


def check_decay(operator: str, A: Tensor) -> None:
    """With ``RSMAMBA_KERNELS_DEBUG=1``: decay rates that do not decay make states explode.

    Raises:
        ValueError: If any is zero, positive or NaN.
    """
    if torch.compiler.is_compiling() or not os.environ.get(DEBUG_ENVIRONMENT):
        return
    if A.is_meta or (A < 0).all():
        return
    raise ValueError(
        f"{operator}: A {tuple(A.shape)} must be negative everywhere, its largest value is "
        f"{A.max().item():g}; models hold log(-A) and pass -exp(A_log)"
    )
