"""The one recurrence behind every scan: h_t = a_t * h_(t-1) + b_t along dimension 1."""

import math
from typing import Any

import torch
from torch import Tensor

#: A step on fewer numbers than this costs more in dispatch than in arithmetic: such sequences are
#: cut into chunks that advance together. Measured on x86 cores.
_WIDE_STEP = 16384


def linear_recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    """All states of ``h_t = decay_t * h_(t-1) + drive_t`` with ``h_(-1) = 0``.

    Args:
        decay: (B, L, ...) multipliers.
        drive: (B, L, ...) inputs, same shape as ``decay``.

    Returns:
        (B, L, ...) states, differentiable in both arguments, any number of times.
    """
    return _recur(decay, drive, False)


def _recur(decay: Tensor, drive: Tensor, adjoint: bool) -> Tensor:
    # Dynamo follows no function that has forward-mode derivatives.
    function = _LinearRecurrence if torch.compiler.is_compiling() else _WithTangents
    states: Tensor = function.apply(decay, drive, adjoint)
    return states


class _LinearRecurrence(torch.autograd.Function):
    """The recurrence and its adjoint, each of which is the other's derivative.

    Forward in time, ``h_t = b_t + a_t h_(t-1)``; its adjoint runs backward in time with the decay
    one step ahead, ``g_t = G_t + a_(t+1) g_(t+1)``. The drive's gradient is the other recurrence of
    the incoming gradient; the decay's is that times the neighbouring state.
    """

    @staticmethod
    def forward(decay: Tensor, drive: Tensor, adjoint: bool) -> Tensor:
        return _states(decay, drive, adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.adjoint = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        decay, states = ctx.saved_tensors
        to_drive = _recur(decay, grad, not ctx.adjoint)
        if not ctx.needs_input_grad[0]:
            return None, to_drive, None
        first = torch.zeros_like(states[:, :1])
        pairs = (
            to_drive[:, :-1] * states[:, 1:] if ctx.adjoint else to_drive[:, 1:] * states[:, :-1]
        )
        return torch.cat([first, pairs], dim=1), to_drive, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], *args: Any
    ) -> tuple[Tensor, int]:
        """Mapped dimensions join the channels, which are independent anyway."""
        decay, drive = (
            t.unsqueeze(-1).expand(*t.shape, info.batch_size) if at is None else t.movedim(at, -1)
            for t, at in zip(args[:2], in_dims[:2], strict=True)
        )
        return _recur(decay, drive, args[2]), -1


class _WithTangents(_LinearRecurrence):
    """The same with forward-mode derivatives: the recurrence again, driven by the changes."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _LinearRecurrence.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def jvp(
        ctx: Any, decay_tangent: Tensor | None, drive_tangent: Tensor | None, _: None
    ) -> Tensor:
        decay, states = ctx.saved_tensors
        drive = torch.zeros_like(states) if drive_tangent is None else drive_tangent
        if decay_tangent is not None:
            edge = torch.zeros_like(states[:, :1])
            if ctx.adjoint:
                drive = drive + torch.cat([decay_tangent[:, 1:] * states[:, 1:], edge], dim=1)
            else:
                drive = drive + torch.cat([edge, decay_tangent[:, 1:] * states[:, :-1]], dim=1)
        return _recur(decay, drive, ctx.adjoint)


def _states(decay: Tensor, drive: Tensor, adjoint: bool) -> Tensor:
    """Evaluate step by step, or in chunks where a step is narrow."""
    length = drive.shape[1]
    if length > 1 and drive[:, 0].numel() < _WIDE_STEP:
        if not adjoint:
            return _chunked_states(decay, drive)
        ahead = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], dim=1)
        return _chunked_states(ahead.flip(1), drive.flip(1)).flip(1)
    states = torch.empty_like(drive, memory_format=torch.contiguous_format)
    if adjoint:
        states[:, -1:] = drive[:, -1:]
        for t in range(length - 2, -1, -1):
            torch.addcmul(drive[:, t], decay[:, t + 1], states[:, t + 1], out=states[:, t])
    else:
        states[:, :1] = drive[:, :1]
        for t in range(1, length):
            torch.addcmul(drive[:, t], decay[:, t], states[:, t - 1], out=states[:, t])
    return states


def _chunked_states(decay: Tensor, drive: Tensor) -> Tensor:
    """Two levels: about ``sqrt(L)`` chunks advance together, then the state is carried across.

    Adds the carried state times the chunk's running decay; unlike forms that divide by a running
    product, that stays exact when the decay vanishes.
    """
    batch, length = drive.shape[:2]
    rest = drive.shape[2:]
    chunk = math.isqrt(length)
    chunks = -(-length // chunk)
    padding = chunks * chunk - length
    states = torch.cat([drive, drive.new_zeros(batch, padding, *rest)], dim=1)
    running = torch.cat([decay, decay.new_ones(batch, padding, *rest)], dim=1)
    states = states.view(batch, chunks, chunk, *rest)
    running = running.view(batch, chunks, chunk, *rest)
    for t in range(1, chunk):
        states[:, :, t].addcmul_(running[:, :, t], states[:, :, t - 1])
        running[:, :, t].mul_(running[:, :, t - 1])
    for c in range(1, chunks):
        # The end of chunk c - 1 is complete by now: it is what enters chunk c.
        states[:, c].addcmul_(running[:, c], states[:, c - 1, -1:])
    return states.view(batch, chunks * chunk, *rest)[:, :length]
