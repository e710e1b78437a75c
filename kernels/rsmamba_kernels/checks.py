"""Checks of an operator's arguments: each error names the argument, its value and the remedy."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

#: Environment variable that turns on the checks that read tensors' values.
DEBUG_ENVIRONMENT = "RSMAMBA_KERNELS_DEBUG"

#: What operators compute with. Other floating dtypes of torch are for storage.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "on", "yes", "y")


def check_tensors(
    operator: str,
    dense: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    **expected: tuple[Tensor | None, tuple[int, ...]],
) -> None:
    """Check dtypes, devices, shapes and memory layout of an operator's tensors.

    Args:
        operator: Its name, for the messages.
        dense: Names of those whose last dimension must be contiguous.
        optional: Names of those that may be None.
        expected: Tensor and shape of each argument; all must be on the device of the first.

    Raises:
        TypeError: If an argument is no dense floating-point tensor.
        ValueError: If a device, shape or layout is wrong.
    """
    first: tuple[str, Tensor] | None = None
    for name, (tensor, shape) in expected.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"{operator}: {name} must be a floating-point tensor, not {kind}; "
                "float16, bfloat16, float32 and float64 are taken"
            )
        if tensor.layout != torch.strided:
            raise TypeError(
                f"{operator}: {name} must be a dense tensor, not {tensor.layout}; "
                f"pass {name}.to_dense()"
            )
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


def check_directions(operator: str, name: str, tensor: Tensor, orders: Sequence[int]) -> None:
    """Check that there is one order for each of the tensor's directions.

    Raises:
        TypeError: If the orders are no sequence.
        ValueError: If there are none, or their number is another.
    """
    if not isinstance(orders, Sequence) or isinstance(orders, str):
        raise TypeError(f"{operator}: orders must be a sequence of integers, not {orders!r}")
    if not orders:
        raise ValueError(f"{operator}: orders is empty; name at least one direction")
    if tensor.shape[0] != len(orders):
        raise ValueError(
            f"{operator}: {name} has {tensor.shape[0]} directions (shape {tuple(tensor.shape)}), "
            f"orders has {len(orders)}: {tuple(orders)}"
        )


def check_decay(operator: str, A: Tensor) -> None:
    """With ``RSMAMBA_KERNELS_DEBUG=1``: decay rates that do not decay make states explode.

    Raises:
        ValueError: If any is zero, positive or NaN.
    """
    if torch.compiler.is_compiling() or not is_set(DEBUG_ENVIRONMENT):
        return
    # A mapped tensor holds values that cannot be read here.
    if A.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(A) or (A < 0).all():
        return
    raise ValueError(
        f"{operator}: A {tuple(A.shape)} must be negative everywhere, its largest value is "
        f"{A.max().item():g}; models hold log(-A) and pass -exp(A_log)"
    )
