"""RoMA with the dense neck: features at strides 4, 8, 16 and 32 for pyramid decoders."""

import math
from typing import Any, Literal

from timm.layers import LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from rsmamba.errors import ConfigError
from rsmamba.models.roma import SIZES, RoMA, build, roma_cfg

# A list: @register_model appends the names of the variants.
__all__ = ["RoMAPyramid"]

#: Strides of the levels relative to one patch.
_FACTORS = (0.25, 0.5, 1.0, 2.0)


def neck_levels(dim: int, norm: bool) -> nn.ModuleList:
    """Four maps of one token grid: enlarged by 4 and 2, as it is, and halved.

    Args:
        dim: Channels, in and out.
        norm: Whether the first branch has a channel LayerNorm (published for segmentation) or
            none (published for change detection).
    """
    return nn.ModuleList(
        [
            nn.Sequential(
                nn.ConvTranspose2d(dim, dim, 2, 2),
                LayerNorm2d(dim, eps=1e-6) if norm else nn.Identity(),
                nn.GELU(),
                nn.ConvTranspose2d(dim, dim, 2, 2),
            ),
            nn.Sequential(nn.ConvTranspose2d(dim, dim, 2, 2)),
            nn.Identity(),
            # An odd grid keeps its last row and column, as every stride-32 encoder does.
            nn.MaxPool2d(2, 2, ceil_mode=True),
        ]
    )


class RoMAPyramid(RoMA):
    """A :class:`RoMA` whose intermediate features are the four levels of the dense neck.

    Level k of an image (H, W) has ceil(H / s_k) x ceil(W / s_k) cells for the strides s = patch
    size times (1/4, 1/2, 1, 2): what belongs to padding alone is cropped. Weights of a plain RoMA
    load as they are.

    Args:
        neck_norm: Whether the 4x branch has its channel LayerNorm.
        **kwargs: Options of :class:`RoMA`.

    Raises:
        ConfigError: If the patch size is no multiple of 4.
    """

    def __init__(self, *, neck_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.neck = neck_levels(self.embed_dim, neck_norm)
        # TorchGeo takes the last child for the head.
        head = self.head
        del self.head
        self.head = head
        patch = self.patch_embed.patch_size[0]
        if patch % 4:
            raise ConfigError(f"patch_size={patch}: a pyramid needs a multiple of 4")
        self.feature_info = [
            {"module": f"neck.{i}", "num_chs": self.embed_dim, "reduction": int(patch * factor)}
            for i, factor in enumerate(_FACTORS)
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Chosen levels of the pyramid, finest first, each (B, D, ceil(H / s_k), ceil(W / s_k)).

        The arguments are timm's; ``norm`` and ``stop_early`` change nothing, because every level
        is made from the normalised output of the last block.

        Raises:
            ConfigError: If tokens (``"NLC"``, prefix tokens) are asked for.
        """
        if output_fmt != "NCHW" or return_prefix_tokens:
            raise ConfigError(
                "the pyramid returns NCHW maps; for tokens take the plain roma_* model"
            )
        take, _ = feature_take_indices(len(self.neck), indices)
        tokens = self.forward_features(x)
        height, width = x.shape[-2:]
        plane = tokens[:, self.num_prefix_tokens :].transpose(1, 2)
        plane = plane.unflatten(2, self._grid((height, width))).contiguous()
        levels = []
        for i in sorted(set(take)):
            stride = self.feature_info[i]["reduction"]
            level = self.neck[i](plane)
            levels.append(level[..., : math.ceil(height / stride), : math.ceil(width / stride)])
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": levels}
            return result if intermediates_only else result | {"image_features": tokens}
        return levels if intermediates_only else (tokens, levels)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the branches after the last chosen level, and the head; the norm stays in use."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        self.neck = self.neck[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return sorted(set(take))


default_cfgs = generate_default_cfgs({f"roma_{size}_patch16_pyramid": roma_cfg() for size in SIZES})


@register_model
def roma_tiny_patch16_pyramid(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Tiny with features at strides 4, 8, 16 and 32."""
    return build(RoMAPyramid, "roma_tiny_patch16_pyramid", pretrained, 4, **kwargs)


@register_model
def roma_small_patch16_pyramid(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Small with features at strides 4, 8, 16 and 32."""
    return build(RoMAPyramid, "roma_small_patch16_pyramid", pretrained, 4, **kwargs)


@register_model
def roma_base_patch16_pyramid(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Base with features at strides 4, 8, 16 and 32."""
    return build(RoMAPyramid, "roma_base_patch16_pyramid", pretrained, 4, **kwargs)


@register_model
def roma_large_patch16_pyramid(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Large with features at strides 4, 8, 16 and 32."""
    return build(RoMAPyramid, "roma_large_patch16_pyramid", pretrained, 4, **kwargs)
