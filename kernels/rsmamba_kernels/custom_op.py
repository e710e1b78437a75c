"""What makes an operator of torch: a pair of custom operations behind a choice of backend.

Backends with kernels run inside ``torch.ops.rsmamba.NAME`` and ``NAME_backward``, opaque to
torch.compile and torch.export; those made of torch operations run as they are and are traced.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rsmamba_kernels import dispatch
from rsmamba_kernels.dispatch import Backend, Request

#: Backend argument of an operation whose caller named none.
_UNASKED = ""
#: (tensors, options) of a call.
Example = tuple[list[Tensor | None], list[Any]]


def waves(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Float32 tensors of smooth, different, reproducible values for examples."""
    return [
        torch.sin(
            torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device=device)
            * (0.37 + 0.21 * i)
        ).view(shape)
        for i, shape in enumerate(shapes)
    ]


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Autocast off: operators know themselves what to compute in which precision."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


class Operator:
    """An operator: tensors first, then options that are no tensors.

    Args:
        name: Its public name.
        tensors: Names of the tensors, those that may be None marked so: ``"u dt D?"``.
        options: Schema of the options: ``"bool softplus, int[] orders"``.
        output: Empty output for given tensors and options.
        example: From a device, arguments of a small float32 call that backends are tried on.
        size: From the tensors, what kernels are compiled for (states, taps).
        keeps_output: Whether the backward takes the output of the forward.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        options: str,
        output: Callable[..., Tensor],
        example: Callable[[str], Example],
        size: Callable[[Sequence[Tensor | None]], int] = lambda tensors: 0,
        keeps_output: bool = False,
    ) -> None:
        self.name, self.output, self.size, self.keeps_output = name, output, size, keeps_output
        self.count = len(tensors.split())
        entry = dispatch.entry(name)
        entry.example, entry.keeps_output = example, keeps_output
        arguments = [
            f"Tensor? {t.removesuffix('?')}" if t.endswith("?") else f"Tensor {t}"
            for t in tensors.split()
        ]
        arguments += [option for option in (options, "str backend") if option]
        saved = ["Tensor output"] if keeps_output else []
        gradients = ", ".join(["Tensor"] * self.count)
        self._forward = torch.library.custom_op(
            f"rsmamba::{name}",
            self._run_forward,
            mutates_args=(),
            schema=f"({', '.join(arguments)}) -> Tensor",
        )
        self._backward = torch.library.custom_op(
            f"rsmamba::{name}_backward",
            self._run_backward,
            mutates_args=(),
            schema=f"({', '.join(['Tensor grad', *saved, *arguments])}) -> ({gradients})",
        )
        self._forward.register_fake(lambda *args: self.output(*args[:-1]))
        self._backward.register_fake(self._fake_backward)
        self._forward.register_autograd(self._differentiate, setup_context=self._save)

    def register(self, backend: Backend) -> None:
        """Add a backend."""
        dispatch.register(self.name, backend)

    def __call__(
        self,
        tensors: Sequence[Tensor | None],
        options: Sequence[Any],
        backend: str | None,
    ) -> Tensor:
        """Choose a backend and run it.

        Args:
            tensors: As declared.
            options: As declared.
            backend: A name, or None to ask ``RSMAMBA_KERNELS`` and then decide alone.

        Raises:
            BackendError: If the backend is unknown or cannot take the tensors.
        """
        device, *facts = _facts(tensors)
        # Under a tracer the size may be a symbol: whoever runs the graph looks at the number.
        size = 0 if torch.compiler.is_compiling() else self.size(tensors)
        chosen = _chosen(self.name, device, *facts, size, backend)
        if device == "meta" and backend is None:
            # Shapes are all there is to compute, and counters see the operation itself.
            chosen = _UNASKED
        else:
            function = dispatch.entry(self.name).backends[chosen].function
            if function is not None:
                with full_precision(device):
                    return function(*tensors, *options)
        if torch.compiler.is_compiling():
            # What is exported here may run where there is no such backend.
            chosen = _UNASKED if backend is None else backend
        y: Tensor = self._forward(*tensors, *options, chosen)
        return y

    def _backend(self, tensors: Sequence[Tensor | None], name: str) -> Backend:
        """The backend of a custom operation; a graph leaves the choice to whoever runs it."""
        backends = dispatch.entry(self.name).backends
        if name in backends:
            return backends[name]
        device, dtypes, empty, _, _, shapes = _facts(tensors)
        request = Request(device, dtypes, self.size(tensors), empty, shapes=shapes)
        return dispatch.resolve(self.name, request, None if name == _UNASKED else name)

    def _run_forward(self, *args: Any) -> Tensor:
        tensors, options, name = args[: self.count], args[self.count : -1], args[-1]
        backend = self._backend(tensors, name)
        with full_precision(tensors[0].device.type):
            if backend.forward is not None:
                return backend.forward(*tensors, *options)
            assert backend.function is not None  # noqa: S101 - one of the two is there
            return backend.function(*tensors, *options).contiguous()

    def _run_backward(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        kept, args = (args[:1], args[1:]) if self.keeps_output else ((), args)
        tensors, options, name = args[: self.count], args[self.count : -1], args[-1]
        backend = self._backend(tensors, name)
        with full_precision(grad.device.type):
            if backend.backward is not None:
                gradients = backend.backward(grad.contiguous(), *kept, *tensors, *options)
            else:
                gradients = dispatch.outside(
                    lambda: _differentiate(backend, grad, tensors, options)
                )
        return tuple(
            grad.new_empty(0) if t is None else _own(g.to(t.dtype).contiguous())
            for g, t in zip(gradients, tensors, strict=True)
        )

    def _fake_backward(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        tensors = (args[1:] if self.keeps_output else args)[: self.count]
        return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[: self.count], *([output] if self.keeps_output else []))
        ctx.options = inputs[self.count :]

    def _differentiate(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read once: gradient checkpointing hands the saved tensors out a single time.
        saved = ctx.saved_tensors
        tensors, kept = saved[: self.count], saved[self.count :]
        gradients = self._backward(grad, *kept, *tensors, *ctx.options)
        wanted = ctx.needs_input_grad
        return (
            *(
                g if needed and t is not None else None
                for g, t, needed in zip(gradients, tensors, wanted[: self.count], strict=True)
            ),
            *(None for _ in ctx.options),
        )


def _own(tensor: Tensor) -> Tensor:
    """A copy of what is part of a larger buffer: outputs of custom operations share none."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _differentiate(
    backend: Backend, grad: Tensor, tensors: Sequence[Tensor | None], options: Sequence[Any]
) -> list[Tensor]:
    """Gradients of a differentiable function, run once more."""
    assert backend.function is not None  # noqa: S101 - or it has a backward
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    present = [leaf for leaf in leaves if leaf is not None]
    with torch.enable_grad(), full_precision(grad.device.type):
        y = backend.function(*leaves, *options)
    gradients = iter(torch.autograd.grad(y, present, grad))
    return [grad if leaf is None else next(gradients) for leaf in leaves]


def _facts(
    tensors: Sequence[Tensor | None],
) -> tuple[str, tuple[torch.dtype, ...], bool, bool, bool, tuple[tuple[int, ...], ...]]:
    """Device, dtypes, whether the tensors are empty, wrapped and compiled, and their shapes."""
    present = [t for t in tensors if t is not None]
    compiling = torch.compiler.is_compiling()
    return (
        present[0].device.type,
        tuple(t.dtype for t in present),
        any(t.numel() == 0 for t in present),
        not compiling and (torch.jit.is_tracing() or any(map(_is_wrapped, present))),
        compiling,
        () if compiling else tuple(tuple(t.shape) for t in present),
    )


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether operations on the tensor are recorded or transformed instead of done."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or (
        forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None
    )


# A tracer sees the answer as a constant of the graph; it could not follow the question.
@torch.compiler.assume_constant_result
def _chosen(
    operator: str,
    device: str,
    dtypes: tuple[torch.dtype, ...],
    empty: bool,
    wrapped: bool,
    compiling: bool,
    shapes: tuple[tuple[int, ...], ...],
    size: int,
    backend: str | None,
) -> str:
    if torch.onnx.is_in_onnx_export():
        # The exporter traces like a compiler, but ONNX knows none of our operations.
        wrapped, compiling = True, False
    request = Request(device, dtypes, size, empty, wrapped, compiling, shapes)
    return dispatch.resolve(operator, request, backend).name
