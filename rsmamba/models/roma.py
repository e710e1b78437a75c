"""RoMA: a plain state-space backbone for remote sensing, scanning its tokens in four directions.

Wang et al., "RoMA: Scaling up Mamba-based Foundation Models for Remote Sensing", NeurIPS 2025,
https://arxiv.org/abs/2503.10392. The blocks are Mamba mixers (Gu & Dao 2023,
https://arxiv.org/abs/2312.00752) and SwiGLU; the class token stands in the middle of the tokens.
"""

import math
from typing import Any, Literal

import torch
from timm.layers import PatchEmbed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsmamba.errors import ConfigError
from rsmamba.models.options import check_positive, drop_path_rates, image_size
from rsmamba.models.position import adapt_state_dict, resize_position
from rsmamba.models.registry import create, default_cfg
from rsmamba.models.roma_layers import Block
from rsmamba_kernels.order import ClassToken

# A list: @register_model appends the names of the variants.
__all__ = ["RoMA"]

_PAPER = "RoMA: Scaling up Mamba-based Foundation Models for Remote Sensing"


class RoMA(nn.Module):
    """The RoMA backbone with a linear classifier, under timm's model contract.

    Any image size is taken: images are padded at the bottom and right to whole patches (with 0,
    the mean of a normalised band) and the position embedding is interpolated.

    Args:
        img_size: Height and width of the image that the position embedding is made for.
        patch_size: Side of a patch in pixels.
        in_chans: Number of bands.
        num_classes: Classes of the head; 0 for none.
        global_pool: ``"token"`` (class token), ``"avg"`` (mean of the patches) or ``""`` (none).
        embed_dim: Channels.
        depth: Number of blocks.
        directions: Scan directions, 4 or 1.
        class_token: Whether a class token stands in slot M // 2 of the M patches.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.

    Raises:
        ConfigError: If the options contradict each other.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["token", "avg", ""] = "token",
        embed_dim: int = 192,
        depth: int = 12,
        directions: int = 4,
        class_token: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if directions not in (1, 4):
            raise ConfigError(f"directions={directions}: choose 1 or 4")
        check_positive(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, depth=depth)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.directions = directions
        self.num_prefix_tokens = int(class_token)
        self.grad_checkpointing = False
        self.reset_pool(global_pool)

        self.patch_embed = PatchEmbed(
            None, patch_size, in_chans, embed_dim, strict_img_size=False, dynamic_img_pad=True
        )
        self.grid_size = self._grid(image_size(img_size))
        tokens = math.prod(self.grid_size) + self.num_prefix_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(Block(embed_dim, directions, rate) for rate in rates)
        self.feature_info: list[dict[str, Any]] = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size}
            for i in range(depth)
        ]
        self.norm: nn.Module = nn.LayerNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = nn.Linear(embed_dim, num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of deviation 0.02, zero biases; the scans keep their own start."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ".scans." not in name:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Decay rates, skips and embeddings; norms and biases are 1-D and go by convention."""
        free = {"A_log", "D", "pos_embed", "cls_token"}
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in free}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise decay (timm)."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head, and the pooling if one is given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.reset_pool(global_pool)
        like = self.pos_embed
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def reset_pool(self, global_pool: str) -> None:
        """Choose the read-out: ``"token"``, ``"avg"`` or ``""``."""
        if global_pool not in ("token", "avg", ""):
            raise ConfigError(f"global_pool={global_pool!r}: choose 'token', 'avg' or ''")
        if global_pool == "token" and not self.num_prefix_tokens:
            raise ConfigError("global_pool='token' needs class_token=True; or choose 'avg'")
        self.global_pool = global_pool

    @property
    def _cls(self) -> ClassToken:
        return "none" if self.cls_token is None else "middle"

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Interpolate the position embedding to another image size for good (timm).

        Without it, :meth:`position` does so in every forward pass.

        Args:
            img_size: Height and width, by default the present ones.
            patch_size: Accepted for timm's sake if it is the present one.

        Raises:
            ConfigError: If the patch size would change.
        """
        if patch_size is not None and to_2tuple(patch_size) != self.patch_embed.patch_size:
            raise ConfigError(
                f"patch_size={patch_size}: the patch size is fixed; build a model with that one"
            )
        if img_size is None:
            return
        grid = self._grid(image_size(img_size))
        trained = self.pos_embed.requires_grad
        self.pos_embed = nn.Parameter(self.position(grid).detach(), requires_grad=trained)
        self.grid_size = grid

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches that cover an image of (H, W) pixels."""
        height, width = self.patch_embed.dynamic_feat_size(size)
        return height, width

    def position(self, grid: tuple[int, int]) -> Tensor:
        """Position embedding on a grid, (1, M or M + 1, D), the class token's row at M // 2."""
        # A size that torch.export leaves open is always interpolated (at the table's own size with
        # weights 0 and 1): a comparison would exclude that size from the exported program.
        if not any(isinstance(side, torch.SymInt) for side in grid) and grid == self.grid_size:
            return self.pos_embed
        return resize_position(self.pos_embed, self.grid_size, grid)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens in raster order with positions, the class token in the middle, and their grid."""
        grid = self._grid((x.shape[-2], x.shape[-1]))
        x = self.patch_embed(x)
        if self.cls_token is not None:
            slot = x.shape[1] // 2
            token = self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :slot], token, x[:, slot:]], dim=1)
        return x + self.position(grid).to(x.dtype), grid

    def run_block(self, block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """One block on tokens in the encoder's order, recomputed in backward if so asked."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, grid, self._cls, use_reentrant=False)
        return block(x, grid, self._cls)

    def _prefix_first(self, x: Tensor) -> Tensor:
        """Move the class token from the middle to the front, where timm's users expect it."""
        if self.cls_token is None:
            return x
        slot = (x.shape[1] - 1) // 2
        return torch.cat([x[:, slot : slot + 1], x[:, :slot], x[:, slot + 1 :]], dim=1)

    def forward_features(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images (B, C, H, W) to normalised tokens (B, [1 +] M, D), class token first."""
        x, grid = self.embed(x)
        for block in self.blocks:
            x = self.run_block(block, x, grid)
        return self._prefix_first(self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the tokens of :meth:`forward_features` and classify them."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K); further keywords are ignored."""
        return self.forward_head(self.forward_features(x))

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
        """Outputs of chosen blocks (timm), in the order of the blocks.

        Args:
            x: (B, C, H, W) images.
            indices: Blocks to return: the last n, a sequence, or all.
            return_prefix_tokens: Return pairs (patches, class token (B, 1, D)).
            norm: Apply the final norm to each.
            stop_early: Do not run the blocks after the last chosen one.
            output_fmt: ``"NCHW"`` (B, D, ceil(H / patch), ceil(W / patch)) or ``"NLC"``.
            intermediates_only: Return the list alone, without the final tokens.
            output_dict: Return a dictionary: ``"image_intermediates"``, with
                ``return_prefix_tokens`` their class tokens as ``"image_intermediates_prefix"``, and
                the final tokens as ``"image_features"``.

        Raises:
            ConfigError: For another ``output_fmt``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(f"output_fmt={output_fmt!r}: choose 'NCHW' or 'NLC'")
        take, last = feature_take_indices(len(self.blocks), indices)
        tokens, grid = self.embed(x)
        maps: list[Tensor] = []
        prefixes: list[Tensor] = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            tokens = self.run_block(block, tokens, grid)
            if i not in take:
                continue
            output = self._prefix_first(self.norm(tokens) if norm else tokens)
            prefix, patches = output.split([self.num_prefix_tokens, math.prod(grid)], dim=1)
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            maps.append(patches)
            prefixes.append(prefix)
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens and self.num_prefix_tokens:
                result["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                result["image_features"] = self._prefix_first(self.norm(tokens))
            return result
        outputs = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
        if intermediates_only:
            return outputs
        return self._prefix_first(self.norm(tokens)), outputs

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the blocks after the last chosen one, and the norm and the head if asked."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return sorted(set(take))


def roma_cfg() -> dict[str, Any]:
    """timm's description of a RoMA."""
    return default_cfg("patch_embed.proj", paper_ids="arXiv:2503.10392", paper_name=_PAPER)


#: Width and depth (paper, table of model sizes).
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12},
    "small": {"embed_dim": 384, "depth": 12},
    "base": {"embed_dim": 768, "depth": 12},
    "large": {"embed_dim": 1024, "depth": 24},
}

default_cfgs = generate_default_cfgs({f"roma_{size}_patch16": roma_cfg() for size in SIZES})


def build(
    model_cls: type[RoMA], variant: str, pretrained: bool, levels: int, **kwargs: Any
) -> RoMA:
    """Build a registered variant; options of the caller override the size's."""
    kwargs = SIZES[variant.split("_")[1]] | kwargs
    model: RoMA = create(
        model_cls, variant, pretrained, levels=levels, filter_fn=adapt_state_dict, **kwargs
    )
    return model


@register_model
def roma_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Tiny: width 192, 12 blocks."""
    return build(RoMA, "roma_tiny_patch16", pretrained, 3, **kwargs)


@register_model
def roma_small_patch16(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Small: width 384, 12 blocks."""
    return build(RoMA, "roma_small_patch16", pretrained, 3, **kwargs)


@register_model
def roma_base_patch16(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Base: width 768, 12 blocks."""
    return build(RoMA, "roma_base_patch16", pretrained, 3, **kwargs)


@register_model
def roma_large_patch16(pretrained: bool = False, **kwargs: Any) -> RoMA:
    """RoMA-Large: width 1024, 24 blocks."""
    return build(RoMA, "roma_large_patch16", pretrained, 3, **kwargs)
