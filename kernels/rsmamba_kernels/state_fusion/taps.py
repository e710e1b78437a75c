"""The three dilated 3x3 kernels of the state fusion as 25 distinct taps, and back."""

import functools

import torch
from torch import Tensor

_DILATIONS = (1, 3, 5)
#: (row, column) of every tap of the three kernels, in the order of their weights.
_OFFSETS = [(d * i, d * j) for d in _DILATIONS for i in (-1, 0, 1) for j in (-1, 0, 1)]
#: The distinct ones, in the order of csrc/state_fusion.h; the kernels share their centre.
TAPS = sorted(set(_OFFSETS))
_TAP_OF_WEIGHT = [TAPS.index(offset) for offset in _OFFSETS]
#: First weight of each tap, and the weights that share the centre.
_WEIGHT_OF_TAP = [_TAP_OF_WEIGHT.index(tap) for tap in range(len(TAPS))]
_CENTRE, _CENTRE_WEIGHTS = TAPS.index((0, 0)), (4, 13, 22)


@functools.cache
def _index(tap_of_weight: bool, device: torch.device) -> Tensor:
    """On the device, once: a copy to a GPU in every call would wait for it."""
    return torch.tensor(_TAP_OF_WEIGHT if tap_of_weight else _WEIGHT_OF_TAP, device=device)


def fold(k1: Tensor, k3: Tensor, k5: Tensor, alpha: Tensor) -> Tensor:
    """(25, D) float32 distinct taps of three (D, 3, 3) kernels with shares ``alpha`` (3,)."""
    kernels = torch.stack([k1, k3, k5]).float()
    weights = alpha.float().view(3, 1, 1, 1) * kernels
    by_weight = weights.flatten(2).transpose(1, 2).flatten(0, 1)
    # Adding by index would add in any order on a GPU; only the centre has something to add.
    # (Brackets would start a team of threads for these few numbers.)
    taps = by_weight.index_select(0, _index(False, kernels.device))
    for weight in _CENTRE_WEIGHTS[1:]:
        taps[_CENTRE] += by_weight[weight]
    return taps


def unfold(
    dtaps: Tensor, k1: Tensor, k3: Tensor, k5: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the kernels and of alpha from that of the taps, (25, D)."""
    kernels = torch.stack([k1, k3, k5]).float()
    by_weight = dtaps.index_select(0, _index(True, dtaps.device))
    by_kernel = by_weight.view(3, 9, -1).transpose(1, 2).reshape(kernels.shape)
    # Channel by channel first: a long sum in one go would depend on the number of threads.
    dalpha = (by_kernel * kernels).sum((2, 3)).sum(1)
    dk1, dk3, dk5 = (alpha.float().view(3, 1, 1, 1) * by_kernel).unbind()
    return dk1, dk3, dk5, dalpha
