"""RoMA's autoregressive pretraining: predict each cluster of patches from the clusters before it.

Wang et al., NeurIPS 2025, https://arxiv.org/abs/2503.10392: rotation-aware tokens and multi-scale
prediction; the cluster order and the decoder follow ARM (Ren et al., "Autoregressive Pretraining
with Mamba in Vision", https://arxiv.org/abs/2406.07537).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from rsmamba.errors import ConfigError
from rsmamba.models.options import check_positive, image_size
from rsmamba.models.roma import SIZES, RoMA

__all__ = ["SCALES", "PretrainingOutput", "RoMAForPretraining", "sincos_table"]

#: Cell sides in pixels and the weight of the coarser terms of the loss.
SCALES = (2, 3, 6)
_SCALE_WEIGHT = 0.1
#: Depths at which the decoder taps the encoder, in sixths of its depth (blocks 6, 8, 10, 12).
_TAPS = (3, 4, 5, 6)
_EPS = 1e-6


@dataclass(slots=True)
class PretrainingOutput:
    """What one pretraining step computes; P = patch area times bands, N = predicted patches.

    Attributes:
        prediction: (B, N, P) normalised patches in cluster order, without the first cluster.
        target: (B, N, P) the same of the target image.
        loss: Scalar: ``loss_fine`` plus 0.1 times each of ``loss_scales``.
        loss_fine: Scalar mean squared error of the normalised pixels.
        loss_scales: Scalar mean squared error by the side of the cells in pixels.
    """

    prediction: Tensor
    target: Tensor
    loss: Tensor
    loss_fine: Tensor
    loss_scales: dict[int, Tensor]


def sincos_table(
    dim: int, grid: tuple[int, int], device: torch.device | str | None = None
) -> Tensor:
    """Two-dimensional sine-cosine position table, (1, H * W, dim) in float32.

    The first half of the channels encodes the column, the second the row; each is sines, then
    cosines, of frequencies 10000^(-i / (dim / 4)).

    Raises:
        ConfigError: If ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ConfigError(f"a sine-cosine table needs a width that is a multiple of 4, got {dim}")
    # In float64, rounded once: float32 powers differ between processors in the sixth digit.
    channel = torch.arange(dim // 4, dtype=torch.float64, device=device)
    frequency = 10000 ** (-channel / (dim / 4))
    rows, columns = (
        torch.arange(n, dtype=torch.float64, device=device).unsqueeze(1) * frequency for n in grid
    )
    rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (rows, columns))
    table = torch.cat(
        [columns.expand(grid[0], -1, -1), rows.unsqueeze(1).expand(-1, grid[1], -1)], dim=-1
    )
    return table.float().flatten(0, 1).unsqueeze(0)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to the encoder's tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Map queries (B, N, D) and memory (B, M, D) to (B, N, D); ``visible`` is (N, M) bool."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.proj(y.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Pre-norm cross-attention and MLP; the queries do not attend to each other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_memory = nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Map queries (B, N, D) and memory (B, M, D) to (B, N, D)."""
        x = x + self.attn(self.norm_query(x), self.norm_memory(memory), visible)
        return x + self.mlp(self.norm2(x))


class RoMAForPretraining(nn.Module):
    """Encoder with one scan direction over clusters of patches, and a cross-attention decoder.

    The image is cut into patches, the patches into square clusters. The encoder reads all clusters
    but the last, in order; cluster i is predicted from the encoder's tokens of clusters < i.

    Args:
        architecture: A registered plain RoMA; its weights are what pretraining is for.
        img_size: Height and width that the position table is made for; forward takes any size
            that is a whole number of clusters.
        patch_size: Side of a patch in pixels.
        cluster_size: Side of a cluster in patches.
        in_chans: Number of bands.
        decoder_dim: Channels of the decoder.
        decoder_depth: Decoder blocks; each reads its own projection of the encoder's taps.
        decoder_heads: Attention heads.
        embed_dim: Encoder channels, if not the architecture's.
        depth: Encoder blocks, if not the architecture's.
        drop_path_rate: Stochastic depth of the encoder's last block.

    Raises:
        ConfigError: If the image is not a whole number of clusters, the architecture is no RoMA or
            a number is out of range.
    """

    def __init__(
        self,
        architecture: str = "roma_tiny_patch16",
        img_size: int | tuple[int, int] = 192,
        patch_size: int = 16,
        cluster_size: int = 4,
        in_chans: int = 3,
        decoder_dim: int = 512,
        decoder_depth: int = 4,
        decoder_heads: int = 8,
        embed_dim: int | None = None,
        depth: int | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(
            patch_size=patch_size, cluster_size=cluster_size, in_chans=in_chans,
            decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_heads=decoder_heads,
        )  # fmt: skip
        if decoder_dim % decoder_heads:
            raise ConfigError(
                f"decoder_heads={decoder_heads} does not divide decoder_dim={decoder_dim}"
            )
        if in_chans * patch_size**2 == 1:
            raise ConfigError("a patch of one value has no deviation: give a larger patch_size")
        self.patch_size = patch_size
        self.cluster_size = cluster_size
        self.in_chans = in_chans
        height, width = image_size(img_size)
        grid = self._grid(height, width)
        plain = {f"roma_{size}_patch16": options for size, options in SIZES.items()}
        if architecture not in plain:
            raise ConfigError(
                f"architecture={architecture!r} is no plain RoMA: choose one of {', '.join(plain)}"
            )
        dim = plain[architecture]["embed_dim"] if embed_dim is None else embed_dim
        blocks = plain[architecture]["depth"] if depth is None else depth
        encoder = RoMA(
            img_size=(height, width),
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool="",
            embed_dim=dim,
            depth=blocks,
            directions=1,
            class_token=False,
            drop_path_rate=drop_path_rate,
        )
        # The taps have norms of their own; the backbone's last one starts afresh downstream.
        encoder.norm = nn.Identity()
        encoder.pos_embed.requires_grad_(False)
        self.encoder = encoder
        self.taps = sorted({math.ceil(blocks * sixths / 6) - 1 for sixths in _TAPS})
        self.tap_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.taps)
        self.angle_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.enc2dec = nn.Linear(dim * len(self.taps), decoder_dim * decoder_depth)
        self.query_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder = nn.ModuleList(
            DecoderBlock(decoder_dim, decoder_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim)
        self.predictor = nn.Linear(decoder_dim, in_chans * patch_size**2)
        self.init_weights(grid)

    def init_weights(self, grid: tuple[int, int]) -> None:
        """Sine-cosine positions; truncated normal of deviation 0.02 elsewhere."""
        with torch.no_grad():
            table = sincos_table(self.encoder.embed_dim, grid, self.angle_embed.device)
            self.encoder.pos_embed.copy_(table)
        for token in (self.angle_embed, self.query_token):
            trunc_normal_(token, std=0.02)
        for part in (self.enc2dec, self.decoder, self.predictor):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Embeddings, decay rates and skips."""
        encoder = {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
        return encoder | {"angle_embed", "query_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass."""
        self.encoder.set_grad_checkpointing(enable)

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """The backbone's weights under the names of :class:`rsmamba.models.RoMA`."""
        return self.encoder.state_dict()

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches; refuses sizes that are no whole number of clusters."""
        unit = self.patch_size * self.cluster_size
        if height % unit or width % unit or min(height, width) < unit:
            near = [
                unit * max(1, rounding(n / unit))
                for n in (height, width)
                for rounding in (math.floor, math.ceil)
            ]
            raise ConfigError(
                f"pretraining on {height} x {width} pixels: sides must be multiples of {unit} "
                f"({self.cluster_size} patches of {self.patch_size}); next valid heights "
                f"{near[0]} and {near[1]}, widths {near[2]} and {near[3]}"
            )
        if height * width == unit**2:
            raise ConfigError(
                f"{height} x {width} pixels are one cluster and nothing is left to predict: "
                f"give at least {2 * unit} on one side, or a smaller cluster_size"
            )
        return height // self.patch_size, width // self.patch_size

    def to_clusters(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Reorder (B, H * W, ...) from raster to cluster order."""
        c = self.cluster_size
        x = x.unflatten(1, (grid[0] // c, c, grid[1] // c, c))
        return x.transpose(2, 3).flatten(1, 4)

    def to_raster(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Undo :meth:`to_clusters`."""
        c = self.cluster_size
        x = x.unflatten(1, (grid[0] // c, grid[1] // c, c, c))
        return x.transpose(2, 3).flatten(1, 4)

    def patchify(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, H * W / p^2, p * p * C) in raster order, band last."""
        p = self.patch_size
        b, c, h, w = image.shape
        x = image.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)
        return x.reshape(b, (h // p) * (w // p), p * p * c)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Undo :meth:`patchify`."""
        p, c = self.patch_size, patches.shape[-1] // self.patch_size**2
        x = patches.reshape(-1, *grid, p, p, c).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, c, grid[0] * p, grid[1] * p)

    def encode(self, image: Tensor, rotated_mask: Tensor | None = None) -> Tensor:
        """Tapped features of the visible clusters, projected for the decoder.

        Args:
            image: (B, C, H, W).
            rotated_mask: (B, H / p, W / p) bool: patches that get the angle embedding.

        Returns:
            (B, N, decoder_dim, decoder_depth) in cluster order, without the last cluster. The
            last axis is the fast one in ``enc2dec``'s output: block k reads channels k, k + depth
            and so on, as in the published weights.
        """
        x, grid = self.encoder.embed(image)
        if rotated_mask is None:
            # Not skipped, so that every parameter has a gradient (DDP insists on it).
            rotated_mask = x.new_zeros(image.shape[0], *grid)
        if rotated_mask.shape != (image.shape[0], *grid):
            raise ConfigError(
                f"rotated_mask has shape {tuple(rotated_mask.shape)}; the tokens of this "
                f"batch are {(image.shape[0], *grid)}"
            )
        x = x + rotated_mask.flatten(1).unsqueeze(-1).to(x.dtype) * self.angle_embed.to(x.dtype)
        x = self.to_clusters(x, grid)[:, : -(self.cluster_size**2)]
        features: list[Tensor] = []
        for i, block in enumerate(self.encoder.blocks):
            # One row: the scan follows the clusters, not the raster.
            x = self.encoder.run_block(block, x, (1, x.shape[1]))
            if i in self.taps:
                features.append(self.tap_norms[len(features)](x))
        latent = self.enc2dec(torch.cat(features, dim=-1))
        return latent.unflatten(-1, (-1, len(self.decoder)))

    def decode(self, latent: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict the normalised patches of all clusters but the first, (B, N, p * p * C)."""
        group = self.cluster_size**2
        table = sincos_table(self.query_token.shape[-1], grid, latent.device)
        position = self.to_clusters(table, grid)[:, group:]
        x = (self.query_token + position.to(self.query_token.dtype)).expand(latent.shape[0], -1, -1)
        cluster = torch.arange(x.shape[1], device=x.device) // group
        # Query i asks for cluster i + 1 and sees the encoder's clusters 0 to i.
        visible = cluster.unsqueeze(1) >= cluster
        for k, block in enumerate(self.decoder):
            x = block(x, latent[..., k], visible)
        return self.predictor(self.decoder_norm(x))

    def normalised_patches(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches in raster order with zero mean and unit deviation, the means, the deviations."""
        patches = self.patchify(image)
        mean = patches.mean(dim=-1, keepdim=True)
        deviation = (patches.var(dim=-1, keepdim=True) + _EPS).sqrt()
        return (patches - mean) / deviation, mean, deviation

    def _image(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Put predicted patches (B, N, P) on the raster, zeros where nothing is predicted."""
        full = F.pad(patches, (0, 0, self.cluster_size**2, 0))
        return self.unpatchify(self.to_raster(full, grid), grid)

    def losses(
        self, prediction: Tensor, target: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Mean squared errors of the pixels and of the means of square cells.

        Both sides are put back on the raster and averaged over cells of s x s pixels, so that a
        coarse term compares the same place in the same band; cells that hold a pixel without a
        prediction, and incomplete cells at the border, do not count.

        Args:
            prediction: (B, N, P) in cluster order, without the first cluster.
            target: (B, N, P).
            grid: Rows and columns of patches.

        Returns:
            The fine loss, and the loss by cell side in :data:`SCALES`. Sides of which no whole
            cell is predicted (patches of few pixels) are left out.
        """
        error = prediction.to(target.dtype) - target
        fine = error.square().mean()
        plane = self._image(error, grid)
        known = self._image(torch.ones_like(error[:1]), grid)[:, :1]
        scales = {}
        hidden = self.cluster_size * self.patch_size
        for s in SCALES:
            rows, columns = plane.shape[-2] // s, plane.shape[-1] // s
            # The first cluster's corner holds ceil(hidden / s) cells along either side.
            if min(rows, columns) == 0 or max(rows, columns) <= math.ceil(hidden / s):
                continue
            # Averaging is linear: the pooled error is the error of the pooled images.
            cells = F.avg_pool2d(plane, s).square()
            valid = (F.avg_pool2d(known, s) > 1 - 0.5 / s**2).to(cells.dtype)
            scales[s] = (cells * valid).sum() / (valid.sum() * cells.shape[0] * cells.shape[1])
        return fine, scales

    def forward(
        self,
        image: Tensor,
        target: Tensor | None = None,
        rotated_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> PretrainingOutput:
        """Predict every cluster but the first and score it.

        Args:
            image: (B, C, H, W) normalised image, with a rotated window or without.
            target: (B, C, H, W) the unrotated image; by default ``image``.
            rotated_mask: (B, H / p, W / p) bool: patches of the rotated window.
            **kwargs: Ignored.

        Raises:
            ConfigError: If the size is no whole number of clusters, or the mask does not fit.
        """
        grid = self._grid(image.shape[-2], image.shape[-1])
        prediction = self.decode(self.encode(image, rotated_mask), grid)
        patches, _, _ = self.normalised_patches(image if target is None else target)
        wanted = self.to_clusters(patches, grid)[:, self.cluster_size**2 :]
        fine, scales = self.losses(prediction, wanted, grid)
        loss = fine + _SCALE_WEIGHT * sum(scales.values())
        return PretrainingOutput(prediction, wanted, loss, fine, scales)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A picture of what the model predicts.

        Predictions are normalised patches; they get the mean and deviation of the true patch, so
        the picture shows predicted structure, not predicted brightness.

        Args:
            image: (B, C, H, W) normalised image.

        Returns:
            The picture (B, C, H, W), with the image itself in the first cluster, and a bool mask
            (H, W) of predicted pixels.
        """
        grid = self._grid(image.shape[-2], image.shape[-1])
        prediction = self.decode(self.encode(image), grid)
        _, mean, deviation = self.normalised_patches(image)
        group = self.cluster_size**2
        mean, deviation = (self.to_clusters(t, grid)[:, group:] for t in (mean, deviation))
        picture = self._image(prediction.to(image.dtype) * deviation + mean, grid)
        known = self._image(torch.ones_like(prediction[:1]), grid)[0, 0] > 0
        return torch.where(known, picture, image), known
