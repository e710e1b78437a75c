"""Parameters and multiply-adds of the backbones, without weights and without running them.

**What is counted.** One multiplication, with or without an addition behind it, is one multiply-add.
PyTorch's own counter (:class:`torch.utils.flop_counter.FlopCounterMode`, which counts two
operations for each) sees matrix products and convolutions; importing this module registers with it
what our operators cost per token and channel, so that it counts a model alike on every device and
with every backend that has kernels of its own:

=====================  =============  ============================================================
operator               multiply-adds  of which
=====================  =============  ============================================================
``conv1d_silu``        W              taps, per direction
``selective_scan``     4 N + 2        per direction: ``dt A``, ``B (dt u)``, the state's update and
                                      ``C h`` for each of N states; ``dt u`` and ``D u``
``state_scan``         4              ``dt A``, ``dt B``, its product with x, the state's update
``state_fusion``       29             3 x 9 taps, ``C h`` and ``D x``
LayerNorm              5              as fvcore counts it, with which such tables are made
=====================  =============  ============================================================

(Mamba, https://arxiv.org/abs/2312.00752, algorithm 2; Spatial-Mamba,
https://arxiv.org/abs/2410.15091, section 4.) A kernel may do with less, such as 25 merged taps; the
count does not depend on it. Not counted: other normalisation, activations, exponentials, gates,
sums, pooling, interpolation. So counted, Spatial-Mamba has the 4.5, 7.1 and 15.8 G of its paper's
table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import rsmamba_kernels  # noqa: F401  (defines the operators)
from rsmamba.errors import ConfigError
from rsmamba.models.pyramid import RoMAPyramid

__all__ = ["Cost", "cost", "counter", "multiply_adds"]

_Shape = Sequence[int]
#: Beyond it torch cannot number the elements of a feature map.
_LARGEST = 2**18


@register_flop_formula(torch.ops.rsmamba.conv1d_silu)
def _conv1d_silu(x: _Shape, weight: _Shape, *_: Any, **__: Any) -> int:
    """x (B, L, D), weight (K, D, W)."""
    return 2 * math.prod(x) * weight[0] * weight[2]


@register_flop_formula(torch.ops.rsmamba.selective_scan)
def _selective_scan(u: _Shape, dt: _Shape, A: _Shape, *_: Any, **__: Any) -> int:
    """u (K, B, L, D), A (K, D, N)."""
    return 2 * math.prod(u) * (4 * A[2] + 2)


@register_flop_formula(torch.ops.rsmamba.state_scan)
def _state_scan(x: _Shape, *_: Any, **__: Any) -> int:
    """x (B, H, W, D)."""
    return 2 * math.prod(x) * 4


@register_flop_formula(torch.ops.rsmamba.state_fusion)
def _state_fusion(h: _Shape, *_: Any, **__: Any) -> int:
    """h (B, H, W, D)."""
    return 2 * math.prod(h) * (3 * 9 + 2)


def _layer_norm(x: _Shape, *_: Any, **__: Any) -> int:
    """x (..., D)."""
    return 2 * math.prod(x) * 5


def counter() -> FlopCounterMode:
    """PyTorch's counter with LayerNorms; its total is twice the multiply-adds."""
    mapping = {torch.ops.aten.native_layer_norm: _layer_norm}
    return FlopCounterMode(display=False, custom_mapping=mapping)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a registered model takes.

    Attributes:
        name: Its timm name.
        parameters: Number of parameters, the head for 1000 classes included.
        multiply_adds: For one image; see the head of this module. Of a pyramid, those of its four
            levels without the head, else those of the classifier.
        size: Height and width of that image.
        strides: Pixels per cell of the feature levels.
        channels: Width of the feature levels.
    """

    name: str
    parameters: int
    multiply_adds: int
    size: tuple[int, int]
    strides: tuple[int, ...]
    channels: tuple[int, ...]


def multiply_adds(model: nn.Module, size: int | tuple[int, int], in_chans: int = 3) -> int:
    """Multiply-adds of a model's forward for one image.

    Only shapes are computed: weights may be on any device, and none are copied.

    Args:
        model: Any module that takes images (1, ``in_chans``, H, W).
        size: H and W in pixels, or one number for both.
        in_chans: Number of bands.

    Raises:
        ConfigError: If the size is not positive.
    """
    height, width = to_2tuple(size)
    if min(height, width) < 1 or max(height, width) > _LARGEST:
        raise ConfigError(f"size={size}: give a positive number of pixels, at most {_LARGEST}")
    shapes = {name: tensor.to("meta") for name, tensor in model.named_parameters()}
    shapes |= {name: tensor.to("meta") for name, tensor in model.named_buffers()}
    image = torch.empty(1, in_chans, height, width, device="meta")
    with torch.no_grad(), counter() as counted:
        functional_call(model, shapes, (image,))
    return int(counted.get_total_flops()) // 2


def cost(name: str, size: int | tuple[int, int] = 224) -> Cost:
    """Parameters and multiply-adds of a registered model.

    Args:
        name: timm name, e.g. ``"roma_base_patch16"``.
        size: Height and width of the image in pixels, or one number for both.

    Raises:
        ConfigError: If the size is not positive.
    """
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        dense = isinstance(model, RoMAPyramid)
        # The forward of a pyramid is that of its classifier: the neck is for features.
        counted = timm.create_model(name, features_only=True).eval() if dense else model
    levels: Any = model.feature_info
    # A plain model lists every block, all of one kind.
    shapes = list(dict.fromkeys((level["reduction"], level["num_chs"]) for level in levels))
    return Cost(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds(counted, size),
        to_2tuple(size),
        tuple(stride for stride, _ in shapes),
        tuple(channels for _, channels in shapes),
    )
